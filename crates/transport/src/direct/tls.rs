//! Certificates: the head makes its own, a branch knows it by its pin.

use std::fmt;
use std::io;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig,
    SignatureScheme,
};

use super::Trust;
use crate::LinkError;

/// The only cryptography of the direct transport. Two providers in one process would be a panic at start.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// What a branch knows the head by: the BLAKE3 hash of its certificate. Shown and read as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pin(pub [u8; 32]);

impl Pin {
    fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(*blake3::hash(certificate).as_bytes())
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pin({self})")
    }
}

/// A text that is not a pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a certificate pin is 64 hexadecimal digits; copy it whole from the head")]
pub struct NotAPin;

impl FromStr for Pin {
    type Err = NotAPin;
    fn from_str(text: &str) -> Result<Self, NotAPin> {
        let hash = blake3::Hash::from_hex(text.trim()).map_err(|_| NotAPin)?;
        Ok(Self(*hash.as_bytes()))
    }
}

/// A head's certificate, its key, and what its branches know it by.
#[derive(Clone)]
pub struct Certificate {
    /// The certificate, PEM.
    pub cert_pem: String,
    /// Its key, PEM. A secret.
    pub key_pem: String,
    /// The certificate's pin.
    pub pin: Pin,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("pin", &self.pin)
            .finish_non_exhaustive()
    }
}

/// Makes a self-signed certificate for these host names and addresses. It does not expire: branches trust its pin, and
/// their clocks may be wrong.
pub fn make_certificate(names: &[String]) -> Result<Certificate, LinkError> {
    let failed =
        |error| LinkError::Settings(format!("no certificate can be made for {names:?}: {error}"));
    let key = rcgen::KeyPair::generate().map_err(failed)?;
    let mut params = rcgen::CertificateParams::new(names).map_err(failed)?;
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "Branchline head");
    let certificate = params.self_signed(&key).map_err(failed)?;
    let pin = Pin::of(certificate.der());
    Ok(Certificate {
        cert_pem: certificate.pem(),
        key_pem: key.serialize_pem(),
        pin,
    })
}

/// The pin of a certificate file's first certificate.
pub fn pin_of(cert_pem: &str) -> Result<Pin, LinkError> {
    let certificate = CertificateDer::from_pem_slice(cert_pem.as_bytes());
    certificate
        .map(|der| Pin::of(&der))
        .map_err(|error| LinkError::Settings(format!("not a PEM certificate: {error}")))
}

pub(super) fn server_config(cert_pem: &str, key_pem: &str) -> Result<Arc<ServerConfig>, LinkError> {
    let wrong = |error: &dyn fmt::Display| {
        LinkError::Settings(format!("the head's certificate or key: {error}"))
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(cert_pem.as_bytes()).collect();
    let chain = chain.map_err(|error| wrong(&error))?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|error| wrong(&error))?;
    let config =
        ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let config = config
        .map_err(|error| wrong(&error))?
        .with_no_client_auth()
        .with_single_cert(chain, key);
    Ok(Arc::new(config.map_err(|error| wrong(&error))?))
}

pub(super) fn client_config(trust: &Trust) -> Result<Arc<ClientConfig>, LinkError> {
    let config =
        ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let config = config.map_err(|error| LinkError::Settings(error.to_string()))?;
    let config = match trust {
        Trust::Pin(pin) => {
            let verifier = PinVerifier {
                pin: *pin,
                provider: provider(),
            };
            config
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(verifier))
        }
        Trust::CaFile(file) => config.with_root_certificates(roots_of(file)?),
        Trust::System => config.with_root_certificates(system_roots()?),
    };
    Ok(Arc::new(config.with_no_client_auth()))
}

fn roots_of(file: &Path) -> Result<RootCertStore, LinkError> {
    let wrong = |error: &dyn fmt::Display| {
        LinkError::Refused(format!("the authorities in {}: {error}", file.display()))
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).map_err(|error| wrong(&error))? {
        let certificate = certificate.map_err(|error| wrong(&error))?;
        roots.add(certificate).map_err(|error| wrong(&error))?;
    }
    Ok(roots)
}

fn system_roots() -> Result<RootCertStore, LinkError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(LinkError::Refused(
            "this system trusts no authority; name a CA file or a pin".into(),
        ));
    }
    Ok(roots)
}

/// Whether a failed handshake is about trust, which waiting does not mend.
pub(super) fn is_about_trust(error: &io::Error) -> bool {
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Error>());
    matches!(inner, Some(Error::InvalidCertificate(_)))
}

/// Trusts one certificate, whatever names or dates it bears, of a peer that proves to hold its key.
#[derive(Debug)]
struct PinVerifier {
    pin: Pin,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if Pin::of(end_entity) == self.pin {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
