//! The bytes on a transport: a fixed frame around one [`Message`], signed by the office that sent it.
//!
//! ```text
//! magic "BRLN" | version 1 | flags | origin length | origin | payload length u32 | plain length u32 | payload
//! | Ed25519 signature over all before (RFC 8032) | CRC-32C over all before (RFC 3720)
//! ```
//!
//! Numbers are big-endian. The payload is CBOR (RFC 8949, `docs/protocol.md`), compressed with zstd (RFC 8878) where
//! flag 1 is set. Lengths are checked before anything is allocated.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::VecDeque;

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};

use crate::identity::{Digest, OfficeName};
use crate::message::Message;

/// The format's version.
pub const VERSION: u8 = 1;
/// The largest envelope, in bytes.
pub const MAX_ENVELOPE_BYTES: usize = 15 * 1024 * 1024;
/// The largest message before compression, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 32 * 1024 * 1024;
/// The largest hello before compression, in bytes. One of today takes less than 400; fields may be added.
pub const MAX_HELLO_BYTES: usize = 64 * 1024;

thread_local! {
    /// Making one takes longer than what most envelopes need of it.
    static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> =
        const { RefCell::new(None) };
    static COMPRESSOR: RefCell<Option<zstd::bulk::Compressor<'static>>> =
        const { RefCell::new(None) };
    /// The last envelopes whose signature was right, by what was checked: one that comes again, since it was sent once more
    /// or a broker has it twice, costs a hash and not a check.
    static VERIFIED: RefCell<VecDeque<[u8; 32]>> = const { RefCell::new(VecDeque::new()) };
}

/// How many envelopes are remembered as verified, and up to which size.
const REMEMBERED: usize = 256;
const REMEMBERED_BYTES: usize = 16 * 1024;

const MAGIC: &[u8; 4] = b"BRLN";
const COMPRESSED: u8 = 1;
const COMPRESS_FROM_BYTES: usize = 128;
const COMPRESSION_LEVEL: i32 = 1;
const SIGNATURE_BYTES: usize = 64;
const CRC_BYTES: usize = 4;
/// Magic, version, flags, a name of one letter, two lengths, a message of one byte, signature, checksum.
pub(crate) const MIN_ENVELOPE_BYTES: usize = 4 + 1 + 1 + 2 + 8 + 1 + SIGNATURE_BYTES + CRC_BYTES;
/// The number of the one message that may be read before it is known who signed it.
const HELLO: u32 = 0;

/// Why bytes are not an envelope that we take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Not ours at all, or cut off.
    #[error("the bytes are not a Branchline envelope ({0})")]
    Malformed(&'static str),
    /// Damaged on the way.
    #[error("the envelope was damaged on the way (checksum)")]
    Damaged,
    /// A version that this program does not speak.
    #[error(
        "the envelope has format version {0}, this program speaks version {VERSION}: update the older office"
    )]
    Version(u8),
    /// Larger than the limits.
    #[error("the envelope or a row in it is too large ({0} bytes)")]
    TooLarge(usize),
    /// Signed by nobody that we know under this name.
    #[error("the envelope is not signed by the office that it names, `{0}`")]
    Forged(String),
    /// Signed by a head whose place another one has taken.
    #[error(
        "the former head `{0}` is running again, and another head has taken its place: stop it there (`branchline leave`), and let it join as a branch"
    )]
    Replaced(String),
    /// The message cannot be read.
    #[error("the message inside the envelope cannot be read: {0}")]
    Message(String),
}

/// An envelope's frame, checked but not yet trusted.
#[derive(Clone, Debug)]
pub struct Opened<'a> {
    /// The office that it says it is from.
    pub origin: OfficeName,
    signed: &'a [u8],
    payload: &'a [u8],
    plain_bytes: usize,
    compressed: bool,
    signature: ed25519_dalek::Signature,
}

/// Puts a message into an envelope.
pub fn seal(
    origin: &OfficeName,
    key: &SigningKey,
    message: &Message,
) -> Result<Vec<u8>, EnvelopeError> {
    let plain =
        minicbor::to_vec(message).map_err(|error| EnvelopeError::Message(error.to_string()))?;
    if plain.len() > MAX_MESSAGE_BYTES {
        return Err(EnvelopeError::TooLarge(plain.len()));
    }
    let squeezed = if plain.len() >= COMPRESS_FROM_BYTES {
        compressed(&plain)
            .ok()
            .filter(|small| small.len() < plain.len())
    } else {
        None
    };
    let payload = squeezed.as_ref().unwrap_or(&plain);
    let mut bytes = Vec::with_capacity(
        payload.len() + 15 + SIGNATURE_BYTES + CRC_BYTES + origin.as_str().len(),
    );
    bytes.extend_from_slice(MAGIC);
    bytes.push(VERSION);
    bytes.push(if squeezed.is_some() { COMPRESSED } else { 0 });
    bytes.push(u8::try_from(origin.as_str().len()).unwrap_or(u8::MAX));
    bytes.extend_from_slice(origin.as_str().as_bytes());
    for length in [payload.len(), plain.len()] {
        bytes.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    }
    bytes.extend_from_slice(payload);
    let signature = key.sign(&bytes);
    bytes.extend_from_slice(&signature.to_bytes());
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_be_bytes());
    if bytes.len() > MAX_ENVELOPE_BYTES {
        return Err(EnvelopeError::TooLarge(bytes.len()));
    }
    Ok(bytes)
}

fn compressed(plain: &[u8]) -> std::io::Result<Vec<u8>> {
    COMPRESSOR.with_borrow_mut(|pack| {
        let pack = match pack {
            Some(pack) => pack,
            None => pack.insert(zstd::bulk::Compressor::new(COMPRESSION_LEVEL)?),
        };
        pack.compress(plain)
    })
}

/// Checks an envelope's frame.
pub fn open(bytes: &[u8]) -> Result<Opened<'_>, EnvelopeError> {
    if bytes.len() > MAX_ENVELOPE_BYTES {
        return Err(EnvelopeError::TooLarge(bytes.len()));
    }
    let rest = bytes
        .strip_prefix(MAGIC)
        .ok_or(EnvelopeError::Malformed("wrong magic"))?;
    match rest.first() {
        Some(&VERSION) => {}
        Some(&other) => return Err(EnvelopeError::Version(other)),
        None => return Err(EnvelopeError::Malformed("cut off")),
    }
    let (covered, crc) = split_tail::<CRC_BYTES>(bytes)?;
    if crc32c::crc32c(covered) != u32::from_be_bytes(crc) {
        return Err(EnvelopeError::Damaged);
    }
    let (signed, signature) = split_tail::<SIGNATURE_BYTES>(covered)?;
    let mut frame = Frame(signed.get(5..).ok_or(EnvelopeError::Malformed("cut off"))?);
    let flags = frame.byte()?;
    let name_bytes = usize::from(frame.byte()?);
    let name = std::str::from_utf8(frame.take(name_bytes)?)
        .map_err(|_| EnvelopeError::Malformed("office name"))?;
    let origin = OfficeName::new(name).map_err(|_| EnvelopeError::Malformed("office name"))?;
    let payload_bytes = frame.length()?;
    let plain_bytes = frame.length()?;
    if plain_bytes > MAX_MESSAGE_BYTES {
        return Err(EnvelopeError::TooLarge(plain_bytes));
    }
    let payload = frame.take(payload_bytes)?;
    if !frame.0.is_empty() || flags & !COMPRESSED != 0 {
        return Err(EnvelopeError::Malformed("frame"));
    }
    let signature = ed25519_dalek::Signature::from_bytes(&signature);
    Ok(Opened {
        origin,
        signed,
        payload,
        plain_bytes,
        compressed: flags & COMPRESSED != 0,
        signature,
    })
}

impl Opened<'_> {
    /// Checks the signature and reads the message.
    pub fn verified_by(&self, key: &VerifyingKey) -> Result<Message, EnvelopeError> {
        self.verify(key)?;
        self.read()
    }

    fn verify(&self, key: &VerifyingKey) -> Result<(), EnvelopeError> {
        let small = self.signed.len() <= REMEMBERED_BYTES;
        let checked = small.then(|| {
            let mut hasher = blake3::Hasher::new();
            hasher.update(key.as_bytes());
            hasher.update(&self.signature.to_bytes());
            <[u8; 32]>::from(hasher.update(self.signed).finalize())
        });
        if checked.is_some_and(|checked| VERIFIED.with_borrow(|known| known.contains(&checked))) {
            return Ok(());
        }
        key.verify_strict(self.signed, &self.signature)
            .map_err(|_| EnvelopeError::Forged(self.origin.to_string()))?;
        VERIFIED.with_borrow_mut(|known| {
            known.extend(checked);
            let surplus = known.len().saturating_sub(REMEMBERED);
            known.drain(..surplus);
        });
        Ok(())
    }

    /// Reads the message of a first hello, which brings its own key: the caller checks the join code's proof. Anyone may
    /// have sent these bytes, so nothing larger than a hello is decompressed, and nothing but a hello is decoded.
    pub fn read_introduction(&self) -> Result<Message, EnvelopeError> {
        let forged = || EnvelopeError::Forged(self.origin.to_string());
        if self.plain_bytes.max(self.payload.len()) > MAX_HELLO_BYTES {
            return Err(forged());
        }
        let plain = self.plain()?;
        if number_of(&plain) != Some(HELLO) {
            return Err(forged());
        }
        let Message::Hello(hello) = decode(&plain)? else {
            return Err(forged());
        };
        let key = VerifyingKey::from_bytes(&hello.public_key).map_err(|_| forged())?;
        self.verify(&key)?;
        Ok(Message::Hello(hello))
    }

    /// Reads a message that this office itself once stored.
    pub fn read_own(&self) -> Result<Message, EnvelopeError> {
        self.read()
    }

    fn read(&self) -> Result<Message, EnvelopeError> {
        decode(&self.plain()?)
    }

    /// The message's bytes, decompressed to at most the length that the frame tells.
    fn plain(&self) -> Result<Cow<'_, [u8]>, EnvelopeError> {
        if !self.compressed {
            return Ok(Cow::Borrowed(self.payload));
        }
        let plain = DECOMPRESSOR.with_borrow_mut(|unpack| {
            let unpack = match unpack {
                Some(unpack) => unpack,
                None => unpack.insert(zstd::bulk::Decompressor::new()?),
            };
            unpack.decompress(self.payload, self.plain_bytes)
        });
        plain
            .map(Cow::Owned)
            .map_err(|error| EnvelopeError::Message(error.to_string()))
    }
}

fn decode(plain: &[u8]) -> Result<Message, EnvelopeError> {
    minicbor::decode(plain).map_err(|error| EnvelopeError::Message(error.to_string()))
}

/// The number that says which message it is.
fn number_of(plain: &[u8]) -> Option<u32> {
    let mut decoder = minicbor::Decoder::new(plain);
    decoder.array().ok()?;
    decoder.u32().ok()
}

/// The hash that chains an envelope to its successor.
pub fn chain(bytes: &[u8]) -> Digest {
    Digest::of(bytes)
}

/// The proof that a joining branch holds its code's secret, bound to its public key.
pub fn join_proof(secret: &[u8; 32], name: &OfficeName, public_key: &[u8; 32]) -> Digest {
    let mut hasher = blake3::Hasher::new_keyed(secret);
    hasher.update(name.as_str().as_bytes()).update(public_key);
    let mut proof = [0; 16];
    proof.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    Digest(proof)
}

fn split_tail<const N: usize>(bytes: &[u8]) -> Result<(&[u8], [u8; N]), EnvelopeError> {
    bytes
        .split_last_chunk::<N>()
        .map(|(head, tail)| (head, *tail))
        .ok_or(EnvelopeError::Malformed("cut off"))
}

struct Frame<'a>(&'a [u8]);

impl<'a> Frame<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], EnvelopeError> {
        let (front, rest) = self
            .0
            .split_at_checked(count)
            .ok_or(EnvelopeError::Malformed("cut off"))?;
        self.0 = rest;
        Ok(front)
    }

    fn byte(&mut self) -> Result<u8, EnvelopeError> {
        Ok(self.take(1)?[0])
    }

    fn length(&mut self) -> Result<usize, EnvelopeError> {
        let mut number = [0; 4];
        number.copy_from_slice(self.take(4)?);
        usize::try_from(u32::from_be_bytes(number)).map_err(|_| EnvelopeError::Malformed("length"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::identity::LogPosition;
    use proptest::prelude::*;

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[7; 32])
    }

    fn sealed() -> Vec<u8> {
        let message =
            Message::VerifyResult("a text that is long enough to be worth compressing ".repeat(9));
        seal(&OfficeName::new("b1").unwrap(), &key(), &message).unwrap()
    }

    #[test]
    fn a_sealed_message_comes_back() {
        let message = Message::Applied(LogPosition(77));
        let bytes = seal(&OfficeName::new("b1").unwrap(), &key(), &message).unwrap();
        let opened = open(&bytes).unwrap();
        assert_eq!(opened.origin.as_str(), "b1");
        assert_eq!(opened.verified_by(&key().verifying_key()).unwrap(), message);
        assert!(sealed().len() < 250, "repetitive text is compressed");
    }

    #[test]
    fn another_offices_signature_is_forged() {
        let other = SigningKey::from_bytes(&[8; 32]);
        let bytes = sealed();
        assert!(matches!(
            open(&bytes).unwrap().verified_by(&other.verifying_key()),
            Err(EnvelopeError::Forged(_))
        ));
    }

    #[test]
    fn what_only_looks_like_an_envelope_that_came_before_is_forged() {
        let bytes = sealed();
        let opened = open(&bytes).unwrap();
        let own = key().verifying_key();
        for _ in 0..2 {
            opened.verified_by(&own).unwrap();
        }
        let other = SigningKey::from_bytes(&[8; 32]).verifying_key();
        let mut resigned = opened.clone();
        resigned.signature = SigningKey::from_bytes(&[8; 32]).sign(opened.signed);
        let mut shorter = opened.clone();
        shorter.signed = &opened.signed[..opened.signed.len() - 1];
        for (envelope, key) in [(&opened, &other), (&resigned, &own), (&shorter, &own)] {
            let outcome = envelope.verified_by(key);
            assert!(matches!(outcome, Err(EnvelopeError::Forged(_))));
        }
    }

    /// An envelope around any bytes, by the key of `key()`.
    fn sealed_around(payload: &[u8], plain_bytes: usize, flags: u8) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([VERSION, flags, 2]);
        bytes.extend(b"b1");
        for length in [payload.len(), plain_bytes] {
            bytes.extend(u32::try_from(length).unwrap().to_be_bytes());
        }
        bytes.extend(payload);
        bytes.extend(key().sign(&bytes).to_bytes());
        bytes.extend(crc32c::crc32c(&bytes).to_be_bytes());
        bytes
    }

    fn introduced(bytes: &[u8]) -> EnvelopeError {
        open(bytes).unwrap().read_introduction().unwrap_err()
    }

    #[test]
    fn a_strangers_envelope_is_not_decompressed_beyond_a_hello() {
        let forged = EnvelopeError::Forged("b1".into());
        // Neither is compressed data, or CBOR: who tries to read them says so.
        let garbage = [0xFF; MAX_HELLO_BYTES + 1];
        assert_eq!(
            introduced(&sealed_around(&garbage[..9], garbage.len(), COMPRESSED)),
            forged
        );
        assert_eq!(introduced(&sealed_around(&garbage, 9, 0)), forged);
        let small = introduced(&sealed_around(&garbage[..9], 99, COMPRESSED));
        assert!(matches!(small, EnvelopeError::Message(_)), "{small}");
    }

    #[test]
    fn of_a_strangers_messages_none_but_a_hello_is_decoded() {
        // [18, [null, [...: entries that were recalled, cut off in the middle.
        let recalled = [0x82, 18, 0x83, 0xF6, 0x99, 0xFF, 0xFF, 0x40];
        let forged = EnvelopeError::Forged("b1".into());
        assert_eq!(
            introduced(&sealed_around(&recalled, recalled.len(), 0)),
            forged
        );
    }

    /// One byte would be one entry, of 24 bytes in memory.
    #[test]
    fn recalled_entries_are_whole_envelopes() {
        let entries = |bytes: &[u8]| {
            let message = Message::Recalled(crate::message::Recalled {
                agreed: None,
                entries: vec![bytes.to_vec().into(); 3],
                end: (LogPosition(1), Digest([0; 16])),
            });
            let bytes = seal(&OfficeName::new("b1").unwrap(), &key(), &message).unwrap();
            open(&bytes).unwrap().verified_by(&key().verifying_key())
        };
        assert!(entries(&sealed()).is_ok());
        assert!(matches!(entries(&[]), Err(EnvelopeError::Message(_))));
    }

    #[test]
    fn a_newer_version_is_refused_by_name() {
        let mut bytes = sealed();
        bytes[4] = 9;
        assert_eq!(open(&bytes).unwrap_err(), EnvelopeError::Version(9));
    }

    proptest! {
        #[test]
        fn no_damage_goes_unnoticed(at in 0usize..200, bit in 0u8..8) {
            let mut bytes = sealed();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert!(open(&bytes).is_err());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut framed = MAGIC.to_vec();
            framed.push(VERSION);
            framed.extend(bytes);
            let crc = crc32c::crc32c(&framed);
            framed.extend(crc.to_be_bytes());
            if let Ok(opened) = open(&framed) {
                prop_assert!(opened.verified_by(&key().verifying_key()).is_err());
            }
        }
    }
}
