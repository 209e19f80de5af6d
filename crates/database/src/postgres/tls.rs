//! The URL's TLS parameters with libpq's meaning, which tokio-postgres does not know.

use std::sync::Arc;

use branchline_core::port::{DatabaseError, DbResult};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use tokio_postgres::Config;
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

/// A parsed database URL.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) config: Config,
    pub(super) tls: MakeRustlsConnect,
}

/// How much of the server's certificate is checked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Check {
    Nothing,
    Chain,
    ChainAndName,
}

#[derive(Default)]
struct Parameters {
    mode: Option<String>,
    root: Option<String>,
    certificate: Option<String>,
    key: Option<String>,
}

/// Parses `postgres://user:password@host:port/db?sslmode=...&sslrootcert=...&sslcert=...&sslkey=...`.
pub(super) fn target(url: &str) -> DbResult<Target> {
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err(refused("its URL must start with postgres://"));
    }
    let (plain, parameters) = split(url)?;
    let mut config: Config = plain
        .parse()
        .map_err(|e| refused(format!("its URL cannot be read: {}", cause(&e))))?;
    let leaks = |host: &tokio_postgres::config::Host| match host {
        tokio_postgres::config::Host::Tcp(name) => name.contains('@'),
        tokio_postgres::config::Host::Unix(_) => false,
    };
    if config.get_hosts().iter().any(leaks) {
        return Err(refused(
            "its URL has an `@` in user or password: write it as %40",
        ));
    }
    let (mode, check) = match (parameters.mode.as_deref(), &parameters.root) {
        (Some("disable"), _) => (SslMode::Disable, Check::Nothing),
        (None | Some("prefer" | "allow"), _) => (SslMode::Prefer, Check::Nothing),
        (Some("require"), None) => (SslMode::Require, Check::Nothing),
        (Some("require"), Some(_)) | (Some("verify-ca"), _) => (SslMode::Require, Check::Chain),
        (Some("verify-full"), _) => (SslMode::Require, Check::ChainAndName),
        (Some(other), _) => {
            return Err(refused(format!(
                "sslmode `{other}` is unknown: use disable, prefer, require, verify-ca or verify-full"
            )));
        }
    };
    config.ssl_mode(mode);
    let tls = MakeRustlsConnect::new(client_config(check, &parameters)?);
    Ok(Target { config, tls })
}

fn split(url: &str) -> DbResult<(String, Parameters)> {
    let mut parameters = Parameters::default();
    let Some((base, query)) = url.split_once('?') else {
        return Ok((url.to_owned(), parameters));
    };
    let mut rest = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let field = match name {
            "sslmode" => &mut parameters.mode,
            "sslrootcert" => &mut parameters.root,
            "sslcert" => &mut parameters.certificate,
            "sslkey" => &mut parameters.key,
            _ => {
                rest.push(pair);
                continue;
            }
        };
        *field = Some(
            decoded(value)
                .ok_or_else(|| refused(format!("parameter `{name}` of its URL cannot be read")))?,
        );
    }
    let plain = if rest.is_empty() {
        base.to_owned()
    } else {
        format!("{base}?{}", rest.join("&"))
    };
    Ok((plain, parameters))
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first == b'%' {
            let pair = std::str::from_utf8(tail.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(pair, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

fn client_config(check: Check, parameters: &Parameters) -> DbResult<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match check {
        Check::Nothing => Arc::new(Lenient {
            provider: Arc::clone(&provider),
            chain: None,
        }),
        _ => {
            let full = WebPkiServerVerifier::builder_with_provider(
                Arc::new(roots(parameters.root.as_deref())?),
                Arc::clone(&provider),
            )
            .build()
            .map_err(|e| refused(format!("no usable root certificate: {e}")))?;
            if check == Check::Chain {
                Arc::new(Lenient {
                    provider: Arc::clone(&provider),
                    chain: Some(full),
                })
            } else {
                full
            }
        }
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| DatabaseError::Other(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    match (&parameters.certificate, &parameters.key) {
        (None, None) => Ok(builder.with_no_client_auth()),
        (Some(certificate), Some(key)) => {
            let key = PrivateKeyDer::from_pem_file(key)
                .map_err(|e| refused(format!("sslkey `{key}`: {e}")))?;
            builder
                .with_client_auth_cert(certificates("sslcert", certificate)?, key)
                .map_err(|e| refused(format!("sslcert and sslkey do not fit: {e}")))
        }
        _ => Err(refused(
            "sslcert and sslkey go together in its URL: one is missing",
        )),
    }
}

fn roots(file: Option<&str>) -> DbResult<RootCertStore> {
    let mut store = RootCertStore::empty();
    match file {
        Some(file) if file != "system" => {
            for certificate in certificates("sslrootcert", file)? {
                store
                    .add(certificate)
                    .map_err(|e| refused(format!("sslrootcert `{file}`: {e}")))?;
            }
        }
        _ => {
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    Ok(store)
}

fn certificates(parameter: &str, file: &str) -> DbResult<Vec<CertificateDer<'static>>> {
    let unreadable =
        |e: rustls::pki_types::pem::Error| refused(format!("{parameter} `{file}`: {e}"));
    CertificateDer::pem_file_iter(file)
        .map_err(unreadable)?
        .collect::<Result<_, _>>()
        .map_err(unreadable)
}

/// What libpq does below `verify-full`: the chain without the name, or neither.
#[derive(Debug)]
struct Lenient {
    provider: Arc<CryptoProvider>,
    chain: Option<Arc<WebPkiServerVerifier>>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(chain) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        // The name is what the verifier checks last, so its failure means that the chain is good.
        match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn cause(error: &tokio_postgres::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

fn refused(message: impl std::fmt::Display) -> DatabaseError {
    DatabaseError::Refused(message.to_string())
}
