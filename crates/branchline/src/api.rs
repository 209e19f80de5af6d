//! The loopback interface of a running office: for the other commands, and for scripts (`POST /api/sync`).
//!
//! It has no login: it listens on a loopback address only, and refuses what a web page could send (requests with an
//! `Origin`, or for another host name), so that a browser on the same machine is no way in. What ends the office
//! (`stop`, `leave`), changes tables or what is shared (`plan`, `schema`, `reload`), changes rows (`settle`, `repair`) or shows them (`history`, `verify`)
//! also wants the token from a file beside the configuration that only its owner can read.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use axum::extract::{Path as UrlPath, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use branchline_core::evolution::Renamed;
use branchline_core::identity::OfficeName;
use branchline_core::message::Keep;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::config::{names_this_machine, write_private};
use crate::exit::{Failure, Outcome, UNREACHED, USAGE, io};
use crate::office::{Handle, beside};
use crate::request::{Answer, Ask};

/// How long a round may take unless the request says otherwise, in seconds.
pub const SYNC_SECONDS: u64 = 60;

/// The body of `POST /api/settle`.
#[derive(Deserialize, Serialize)]
pub struct Settling {
    /// The conflict's number.
    pub conflict: u64,
    /// What shall stand.
    pub keep: KeepWord,
}

/// What shall stand after a conflict, as a word.
#[derive(Clone, Copy, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KeepWord {
    /// The head's row.
    Head,
    /// The branch's row.
    Branch,
    /// The row that both sides changed.
    Base,
    /// The branch's held row, if it fits by now.
    Retry,
}

impl From<KeepWord> for Keep {
    fn from(word: KeepWord) -> Self {
        match word {
            KeepWord::Head => Self::Head,
            KeepWord::Branch => Self::Branch,
            KeepWord::Base => Self::Base,
            KeepWord::Retry => Self::Retry,
        }
    }
}

/// The body of `POST /api/history`.
#[derive(Deserialize, Serialize)]
pub struct RowOf {
    /// The table's name.
    pub table: String,
    /// The key's values, as text.
    pub key: Vec<String>,
}

/// The body of `POST /api/schema/rename`.
#[derive(Deserialize, Serialize)]
pub struct NewName {
    /// The table, by its name before.
    pub table: String,
    /// The column by its name before; none where the table itself was renamed.
    pub column: Option<String>,
    /// The name now.
    pub to: String,
}

impl From<NewName> for Renamed {
    fn from(said: NewName) -> Self {
        Self {
            table: said.table,
            column: said.column,
            to: said.to,
        }
    }
}

#[derive(Deserialize)]
struct Patience {
    timeout: Option<u64>,
}

/// Serves until told to stop, and records the address beside the configuration.
pub async fn serve(
    config: &Path,
    listen: SocketAddr,
    office: Handle,
    stop: CancellationToken,
) -> Outcome<()> {
    let listener = tokio::net::TcpListener::bind(listen).await;
    let listener = listener.map_err(io(format_args!("api.listen = \"{listen}\"")))?;
    let bound = listener.local_addr().map_err(io("the api's address"))?;
    let record = beside(config, "api");
    tracing::info!("commands are heard at http://{bound}");
    let token: [u8; 16] = crate::driver::random()?;
    let token: String = token.iter().map(|byte| format!("{byte:02x}")).collect();
    write_private(&beside(config, "token"), &token)?;
    write_private(&record, &bound.to_string())?;
    let guarded = Router::new()
        .route("/api/settle", post(settle))
        .route("/api/history", post(history))
        .route("/api/leave", post(leave))
        .route("/api/verify", post(verify))
        .route("/api/repair", post(repair))
        .route("/api/plan", post(apply_plan))
        .route("/api/schema/accept", post(accept_schema))
        .route("/api/schema/rename", post(say_renamed))
        .route("/api/reload/{name}", post(reload))
        .route("/api/stop", post(stop_office))
        .route_layer(axum::middleware::from_fn_with_state(token, with_token));
    let routes = Router::new()
        .route("/api/status", get(status))
        .route("/api/sync", post(sync))
        .merge(guarded)
        .layer(axum::middleware::map_response(in_words))
        .layer(axum::middleware::from_fn(local_only))
        .with_state(office);
    let served = axum::serve(listener, routes)
        .with_graceful_shutdown(async move { stop.cancelled().await })
        .await;
    drop(std::fs::remove_file(&record));
    served.map_err(io("the api"))
}

async fn local_only(
    headers: HeaderMap,
    request: axum::extract::Request,
    next: axum::middleware::Next,
) -> Response {
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok())
        .unwrap_or_default();
    if !names_this_machine(host) || headers.contains_key(header::ORIGIN) {
        let why = "only programs on this machine may ask, not web pages";
        return refusal(StatusCode::FORBIDDEN, &Failure::usage(why));
    }
    next.run(request).await
}

/// What ends an office, or goes at its rows, wants the token that stands in a file only its owner can read.
async fn with_token(
    State(token): State<String>,
    headers: HeaderMap,
    request: axum::extract::Request,
    next: axum::middleware::Next,
) -> Response {
    let given = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    if given.and_then(|given| given.strip_prefix("Bearer ")) != Some(&token) {
        let why = "this needs the header `Authorization: Bearer` with the token in the file beside the configuration";
        return refusal(StatusCode::UNAUTHORIZED, &Failure::usage(why));
    }
    next.run(request).await
}

/// A failure that answers a request.
fn refusal(status: StatusCode, failure: &Failure) -> Response {
    let document = serde_json::json!({ "error": failure.message, "code": failure.code });
    (
        status,
        [("x-exit-code", failure.code.to_string())],
        Json(document),
    )
        .into_response()
}

/// Puts what the web framework says of a wrong request into the form of our own failures.
async fn in_words(response: Response) -> Response {
    let status = response.status();
    if status.is_success() || response.headers().contains_key("x-exit-code") {
        return response;
    }
    let told = axum::body::to_bytes(response.into_body(), 4096).await;
    let told = String::from_utf8_lossy(&told.unwrap_or_default()).into_owned();
    let why = match status {
        StatusCode::NOT_FOUND => "there is no such request".into(),
        StatusCode::METHOD_NOT_ALLOWED => {
            "this request wants another method: GET for the status, POST for all else".into()
        }
        _ => told,
    };
    refusal(status, &Failure::usage(why))
}

fn respond(answer: Answer) -> Response {
    match answer {
        Ok((code, document)) => (
            StatusCode::OK,
            [("x-exit-code", code.to_string())],
            Json(document),
        )
            .into_response(),
        Err(failure) if failure.code == UNREACHED => refusal(StatusCode::BAD_GATEWAY, &failure),
        Err(failure) => refusal(StatusCode::CONFLICT, &failure),
    }
}

fn deadline(patience: &Patience) -> Instant {
    Instant::now() + Duration::from_secs(patience.timeout.unwrap_or(SYNC_SECONDS).min(86_400))
}

async fn status(State(office): State<Handle>) -> Response {
    respond(office.ask(Ask::Status).await)
}

async fn sync(State(office): State<Handle>, Query(patience): Query<Patience>) -> Response {
    respond(
        office
            .ask(Ask::Sync {
                deadline: deadline(&patience),
            })
            .await,
    )
}

async fn verify(State(office): State<Handle>, Query(patience): Query<Patience>) -> Response {
    compare(&office, &patience, false).await
}

async fn repair(State(office): State<Handle>, Query(patience): Query<Patience>) -> Response {
    compare(&office, &patience, true).await
}

async fn compare(office: &Handle, patience: &Patience, repair: bool) -> Response {
    let deadline = deadline(patience);
    respond(office.ask(Ask::Verify { deadline, repair }).await)
}

async fn settle(
    State(office): State<Handle>,
    Query(patience): Query<Patience>,
    Json(settling): Json<Settling>,
) -> Response {
    respond(
        office
            .ask(Ask::Settle {
                conflict: settling.conflict,
                keep: settling.keep.into(),
                deadline: deadline(&patience),
            })
            .await,
    )
}

async fn history(
    State(office): State<Handle>,
    Query(patience): Query<Patience>,
    Json(row): Json<RowOf>,
) -> Response {
    respond(
        office
            .ask(Ask::History {
                table: row.table,
                key: row.key,
                deadline: deadline(&patience),
            })
            .await,
    )
}

async fn reload(State(office): State<Handle>, UrlPath(name): UrlPath<String>) -> Response {
    match OfficeName::new(name) {
        Ok(name) => respond(office.ask(Ask::Reload(name)).await),
        Err(error) => respond(Err(Failure::new(USAGE, error.to_string()))),
    }
}

async fn apply_plan(State(office): State<Handle>, Query(patience): Query<Patience>) -> Response {
    let deadline = deadline(&patience);
    respond(office.ask(Ask::ApplyPlan { deadline }).await)
}

async fn accept_schema(State(office): State<Handle>, Query(patience): Query<Patience>) -> Response {
    let deadline = deadline(&patience);
    respond(office.ask(Ask::AcceptSchema { deadline }).await)
}

async fn say_renamed(State(office): State<Handle>, Json(said): Json<NewName>) -> Response {
    respond(office.ask(Ask::SayRenamed(said.into())).await)
}

async fn leave(State(office): State<Handle>) -> Response {
    respond(office.ask(Ask::Leave).await)
}

async fn stop_office(State(office): State<Handle>) -> Response {
    respond(office.ask(Ask::Stop).await)
}

/// Where the office that owns this configuration listens, if it runs.
pub fn address(config: &Path) -> Option<SocketAddr> {
    std::fs::read_to_string(beside(config, "api"))
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// Whether an office listens at the recorded address. A killed one leaves its record behind.
pub async fn answers(config: &Path) -> bool {
    let Some(address) = address(config) else {
        return false;
    };
    let reached = tokio::time::timeout(
        Duration::from_secs(1),
        tokio::net::TcpStream::connect(address),
    );
    reached.await.is_ok_and(|connected| connected.is_ok())
}

/// Asks the office that runs beside this command.
pub async fn call(config: &Path, method: &str, path: &str, patience: Duration) -> Answer {
    call_with(config, method, path, None, patience).await
}

/// Asks the office that runs beside this command, with a JSON body.
pub async fn call_with(
    config: &Path,
    method: &str,
    path: &str,
    body: Option<&serde_json::Value>,
    patience: Duration,
) -> Answer {
    let unreachable = |why: String| {
        Failure::new(
            UNREACHED,
            format!(
                "the running office of {} does not answer: {why}",
                config.display()
            ),
        )
    };
    let address =
        address(config).ok_or_else(|| unreachable("it has not recorded its address".into()))?;
    let token = std::fs::read_to_string(beside(config, "token")).unwrap_or_default();
    let asked = tokio::time::timeout(patience, request(address, method, path, &token, body)).await;
    match asked {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => Err(unreachable(error.to_string())),
        Err(_) => Err(unreachable("it took too long".into())),
    }
}

/// One plain HTTP/1.1 exchange with our own server on this machine.
async fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    token: &str,
    body: Option<&serde_json::Value>,
) -> std::io::Result<Answer> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    let body = body.map(ToString::to_string).unwrap_or_default();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    let mut bytes = Vec::new();
    stream
        .take(16 * 1024 * 1024)
        .read_to_end(&mut bytes)
        .await?;
    let text = String::from_utf8_lossy(&bytes);
    let broken = || std::io::Error::other("the answer is not HTTP");
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(broken)?;
    let code = head.lines().find_map(|line| {
        line.to_ascii_lowercase()
            .strip_prefix("x-exit-code: ")
            .map(str::to_string)
    });
    let code: u8 = code
        .and_then(|code| code.trim().parse().ok())
        .ok_or_else(broken)?;
    let document: serde_json::Value = serde_json::from_str(body.trim()).map_err(|_| broken())?;
    Ok(
        match document.get("error").and_then(serde_json::Value::as_str) {
            Some(message) if document.get("code").is_some() => Err(Failure::new(code, message)),
            _ => Ok((code, document)),
        },
    )
}
