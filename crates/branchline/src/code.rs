//! Join codes: one line that holds all that a branch needs to find and trust its head.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use branchline_core::identity::{Incarnation, OfficeName};
use minicbor::{Decode, Encode};

use crate::exit::{Failure, Outcome};

const PREFIX: &str = "bl1-";

/// What a join code says.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub struct JoinCode {
    /// The branch's name.
    #[n(0)]
    pub branch: OfficeName,
    /// The head's name.
    #[n(1)]
    pub head: OfficeName,
    /// The head's public key.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub head_key: [u8; 32],
    /// The one-time secret.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub secret: [u8; 32],
    /// How to reach the head.
    #[n(4)]
    pub route: Route,
    /// The head's log: a branch that follows it under another head goes on with it.
    #[n(5)]
    pub log: Option<Incarnation>,
}

/// How to reach the head.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub enum Route {
    /// Through RabbitMQ.
    #[n(0)]
    Amqp {
        /// The broker's address for this branch.
        #[n(0)]
        url: String,
        /// The fanout exchange that branches publish to.
        #[n(1)]
        head_exchange: String,
        /// The fanout exchange that the head publishes to.
        #[n(2)]
        branches_exchange: String,
        /// The branch's queue.
        #[n(3)]
        queue: String,
    },
    /// Straight.
    #[n(1)]
    Direct {
        /// The head's address.
        #[n(0)]
        url: String,
        /// The hash of its certificate.
        #[n(1)]
        pin: Option<String>,
    },
}

impl JoinCode {
    /// The code as one line.
    pub fn to_line(&self) -> Outcome<String> {
        let bytes = minicbor::to_vec(self)
            .map_err(|error| Failure::new(crate::exit::BUG, error.to_string()))?;
        Ok(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// Reads a line.
    pub fn from_line(line: &str) -> Outcome<Self> {
        let wrong = |what: &str| {
            Failure::usage(format!(
                "this is not a join code ({what}); copy the whole line that `branchline invite` printed"
            ))
        };
        let body = line
            .trim()
            .strip_prefix(PREFIX)
            .ok_or_else(|| wrong("it should begin with bl1-"))?;
        let bytes = URL_SAFE_NO_PAD
            .decode(body)
            .map_err(|_| wrong("it is damaged"))?;
        let code: Self = minicbor::decode(&bytes).map_err(|_| wrong("it is cut off or damaged"))?;
        if code.branch.is_valid() && code.head.is_valid() {
            Ok(code)
        } else {
            Err(wrong("a name in it is not legal"))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_code_comes_back_and_a_damaged_one_is_refused() {
        let code = JoinCode {
            branch: OfficeName::new("b1").unwrap(),
            head: OfficeName::new("HO").unwrap(),
            head_key: [1; 32],
            secret: [2; 32],
            route: Route::Direct {
                url: "wss://ho:7443".into(),
                pin: Some("ab".into()),
            },
            log: Some(Incarnation([3; 16])),
        };
        let line = code.to_line().unwrap();
        assert!(JoinCode::from_line(&line).unwrap() == code);
        assert!(JoinCode::from_line(&line[..line.len() - 9]).is_err());
        assert!(JoinCode::from_line("hello").is_err());
    }
}
