//! What was typed: the configuration file, section by section.

use std::collections::BTreeMap;
use std::path::PathBuf;

use branchline_core::evolution::Follow;
use branchline_core::identity::OfficeName;
use branchline_core::retention::Retention;
use serde::Deserialize;

use crate::exit::{Failure, Outcome};
use crate::plan::rules::TableSection;

/// A value, or the file that holds it.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "this must be a text, or { file = \"NAME\" }")]
pub(super) enum Secret {
    Value(String),
    File(SecretFile),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SecretFile {
    pub(super) file: PathBuf,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConfigFile {
    pub(super) office: OfficeSection,
    pub(super) transport: TransportSection,
    #[serde(default)]
    pub(super) api: ApiSection,
    #[serde(default)]
    pub(super) sync: SyncSection,
    #[serde(default)]
    pub(super) retention: RetentionSection,
    #[serde(default)]
    pub(super) plan: PlanSection,
    #[serde(default)]
    pub(super) tables: BTreeMap<String, TableSection>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PlanSection {
    pub(super) tables: Option<String>,
    pub(super) schema: Option<FollowWord>,
}

/// What a changed table means, as a word.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum FollowWord {
    Follow,
    Ask,
    Refuse,
}

impl From<FollowWord> for Follow {
    fn from(word: FollowWord) -> Self {
        match word {
            FollowWord::Follow => Self::Follow,
            FollowWord::Ask => Self::Ask,
            FollowWord::Refuse => Self::Refuse,
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OfficeSection {
    pub(super) name: OfficeName,
    pub(super) role: RoleName,
    pub(super) database: Option<Secret>,
}

/// Which office this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RoleName {
    /// The head.
    Head,
    /// A branch.
    Branch,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TransportSection {
    pub(super) amqp: Option<Secret>,
    pub(super) head_exchange: Option<String>,
    pub(super) branches_exchange: Option<String>,
    pub(super) queue: Option<String>,
    pub(super) queue_kind: Option<QueueKindName>,
    pub(super) heartbeat_seconds: Option<u16>,
    pub(super) listen: Option<String>,
    pub(super) advertise: Option<String>,
    pub(super) connect: Option<String>,
    pub(super) pin: Option<String>,
    pub(super) ca: Option<PathBuf>,
    pub(super) certificate: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum QueueKindName {
    Classic,
    Quorum,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ApiSection {
    pub(super) listen: Option<String>,
}

/// How long an office keeps what it may be asked for again.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RetentionSection {
    pub(super) absent_days: Option<u32>,
    pub(super) recovery_days: Option<u32>,
    pub(super) gigabytes: Option<u32>,
}

impl RetentionSection {
    pub(super) fn checked(self) -> Outcome<Retention> {
        const DAY_MS: i64 = 24 * 60 * 60 * 1000;
        let default = Retention::default();
        let days = |days: Option<u32>, or| days.map_or(or, |days| i64::from(days) * DAY_MS);
        let retention = Retention {
            absent_ms: days(self.absent_days, default.absent_ms),
            recovery_ms: days(self.recovery_days, default.recovery_ms),
            bytes: self
                .gigabytes
                .map_or(default.bytes, |gigabytes| u64::from(gigabytes) << 30),
        };
        if retention.recovery_ms > retention.absent_ms {
            return Err(Failure::usage(
                "[retention]: `recovery_days` must not exceed `absent_days`",
            ));
        }
        Ok(retention)
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SyncSection {
    #[serde(default)]
    pub(super) mode: Mode,
}

/// When data moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// As soon as it can.
    #[default]
    Live,
    /// When asked.
    Manual,
}

impl Mode {
    /// The word for scripts.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Manual => "manual",
        }
    }
}
