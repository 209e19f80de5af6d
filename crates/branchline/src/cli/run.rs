//! `run`: the office's process.

use tokio_util::sync::CancellationToken;

use super::Context;
use crate::exit::{Failure, Outcome, io};
use crate::office::{Lock, Office};
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
    let office = Office::start(&settings).await?;
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
        signal = stop_signal() => signal.map(|name| tracing::info!("{name}: stopping")),
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

/// Waits until this process is told to stop, and says by which signal.
pub async fn stop_signal() -> Outcome<&'static str> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate()).map_err(io("SIGTERM"))?;
    let mut int = signal(SignalKind::interrupt()).map_err(io("SIGINT"))?;
    Ok(tokio::select! {
        _ = term.recv() => "SIGTERM",
        _ = int.recv() => "SIGINT",
    })
}
