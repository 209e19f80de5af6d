//! `run`: the office's process.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::Context;
use crate::exit::{Failure, Outcome, io};
use crate::office::{Lock, OWN_SURELY, Office};
use crate::{api, config};

/// Runs until SIGTERM or SIGINT, then stops cleanly.
pub async fn run(context: &Context) -> Outcome<u8> {
    let settings = config::read(&context.config)?;
    let Some(_lock) = Lock::take_soon(&context.config).await? else {
        return Err(Failure::usage(format!(
            "office `{}` is running already",
            settings.name
        )));
    };
    let mut signals = StopSignals::listen()?;
    let office = tokio::select! {
        office = Office::start(&settings, OWN_SURELY) => office?,
        name = signals.told() => {
            tracing::info!("{name}: stopping before the start");
            return Ok(0);
        }
    };
    if let Some(bound) = office.bound {
        tracing::info!("{} listens for branches at {bound}", settings.name);
    }
    let stop = CancellationToken::new();
    let mut served = tokio::spawn({
        let (config, handle, stop) = (context.config.clone(), office.handle(), stop.clone());
        async move { api::serve(&config, settings.api, handle, stop).await }
    });
    let mut serves = true;
    let outcome = tokio::select! {
        name = signals.told() => {
            tracing::info!("{name}: stopping");
            Ok(())
        }
        ended = &mut served => {
            serves = false;
            ended.unwrap_or_else(|error| Err(Failure::new(crate::exit::BUG, error.to_string())))
        }
        () = office.ended() => Ok(()),
    };
    stop.cancel();
    let stopped = office.close().await;
    if serves {
        drop(tokio::time::timeout(std::time::Duration::from_secs(2), served).await);
    }
    drop(std::fs::remove_file(crate::office::beside(
        &context.config,
        "api",
    )));
    outcome.and(stopped).map(|()| 0)
}

/// The signals that tell this process to stop. None is missed while nobody waits for one.
pub struct StopSignals {
    term: Signal,
    int: Signal,
}

impl StopSignals {
    /// Hears them from now on.
    pub fn listen() -> Outcome<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate()).map_err(io("SIGTERM"))?,
            int: signal(SignalKind::interrupt()).map_err(io("SIGINT"))?,
        })
    }

    /// Waits for one, and says which.
    pub async fn told(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}
