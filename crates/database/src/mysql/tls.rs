//! The address of a database, with TLS parameters that have libpq's names and meaning.

use std::path::PathBuf;
use std::time::Duration;

use branchline_core::port::{DatabaseError, DbResult};
use mysql_async::{ClientIdentity, Opts, OptsBuilder, SslOpts};

const KEEPALIVE: Duration = Duration::from_secs(30);
const DEFAULT_PORT: u16 = 3306;

/// A parsed database address.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) opts: Opts,
    /// The same without TLS, where that will do (`prefer`).
    pub(super) fallback: Option<Opts>,
    /// Whether any name in a certificate that is otherwise good will do (`verify-ca`).
    any_name: bool,
    /// Host and port, for messages.
    pub(super) place: String,
    /// The database's name.
    pub(super) database: String,
}

impl Target {
    /// The same for a server whose certificate bears this name, where its name does not matter.
    pub(super) fn under_name(&self, name: String) -> Option<Opts> {
        let tls = self.opts.ssl_opts().filter(|_| self.any_name)?.clone();
        let tls = tls.with_danger_tls_hostname_override(Some(name));
        let builder = OptsBuilder::from_opts(self.opts.clone());
        Some(builder.ssl_opts(Some(tls)).into())
    }
}

/// How far the server's certificate is checked, and whether there must be one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Check {
    NothingIfAtAll,
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

/// Parses `mysql://user:password@host:port/db?sslmode=...&sslrootcert=...&sslcert=...&sslkey=...`.
pub(super) fn target(url: &str) -> DbResult<Target> {
    let rest = url
        .strip_prefix("mysql://")
        .or_else(|| url.strip_prefix("mariadb://"))
        .ok_or_else(|| refused("its URL must start with mysql://"))?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (server, database) = rest.split_once('/').unwrap_or((rest, ""));
    let (account, place) = server.rsplit_once('@').unwrap_or(("", server));
    if account.contains('@') {
        return Err(refused(
            "its URL has an `@` in user or password: write it as %40",
        ));
    }
    let (user, password) = account.split_once(':').unwrap_or((account, ""));
    let (host, port) = host_and_port(place)?;
    let database = decoded("the database's name", database)?;
    if database.is_empty() {
        return Err(refused("its URL names no database: mysql://.../NAME"));
    }
    let builder = OptsBuilder::default()
        .ip_or_hostname(host.clone())
        .tcp_port(port)
        .user(Some(decoded("the user", user)?))
        .pass(Some(decoded("the password", password)?))
        .db_name(Some(database.clone()))
        .prefer_socket(false)
        .tcp_keepalive(Some(KEEPALIVE))
        .stmt_cache_size(0);
    let tls = ssl(&parameters(query)?)?;
    let check = tls.as_ref().map(|(_, check)| *check);
    let plain: Opts = builder.clone().into();
    Ok(Target {
        fallback: (check == Some(Check::NothingIfAtAll)).then(|| plain.clone()),
        any_name: check == Some(Check::Chain),
        opts: match tls {
            Some((tls, _)) => builder.ssl_opts(Some(tls)).into(),
            None => plain,
        },
        place: format!("{host}:{port}"),
        database,
    })
}

fn host_and_port(place: &str) -> DbResult<(String, u16)> {
    let (host, port) = match place.strip_prefix('[').and_then(|v6| v6.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':')),
        None => match place.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (place, None),
        },
    };
    let port = match port {
        Some(port) => port
            .parse()
            .map_err(|_| refused("the port in its URL is no number"))?,
        None => DEFAULT_PORT,
    };
    let host = if host.is_empty() { "localhost" } else { host };
    Ok((decoded("the host", host)?, port))
}

fn parameters(query: &str) -> DbResult<Parameters> {
    let mut parameters = Parameters::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let field = match name {
            "sslmode" => &mut parameters.mode,
            "sslrootcert" => &mut parameters.root,
            "sslcert" => &mut parameters.certificate,
            "sslkey" => &mut parameters.key,
            _ => {
                return Err(refused(format!(
                    "its URL has an unknown parameter `{name}`"
                )));
            }
        };
        *field = Some(decoded(name, value)?);
    }
    Ok(parameters)
}

/// The TLS options; `None` without TLS.
fn ssl(parameters: &Parameters) -> DbResult<Option<(SslOpts, Check)>> {
    let check = match (parameters.mode.as_deref(), &parameters.root) {
        (Some("disable"), _) => return Ok(None),
        (None | Some("prefer" | "allow"), _) => Check::NothingIfAtAll,
        (Some("require"), None) => Check::Nothing,
        (Some("require"), Some(_)) | (Some("verify-ca"), _) => Check::Chain,
        (Some("verify-full"), _) => Check::ChainAndName,
        (Some(other), _) => {
            return Err(refused(format!(
                "sslmode `{other}` is unknown: use disable, prefer, require, verify-ca or verify-full"
            )));
        }
    };
    let options = match check {
        Check::NothingIfAtAll | Check::Nothing => trusting(SslOpts::default()),
        Check::Chain | Check::ChainAndName => {
            with_roots(SslOpts::default(), parameters.root.as_deref())?
        }
    };
    let options = match (&parameters.certificate, &parameters.key) {
        (None, None) => options,
        (Some(certificate), Some(key)) => options.with_client_identity(Some(ClientIdentity::new(
            file("sslcert", certificate)?.into(),
            file("sslkey", key)?.into(),
        ))),
        _ => {
            return Err(refused(
                "sslcert and sslkey go together in its URL: one is missing",
            ));
        }
    };
    Ok(Some((options, check)))
}

fn trusting(options: SslOpts) -> SslOpts {
    options
        .with_danger_accept_invalid_certs(true)
        .with_danger_skip_domain_validation(true)
}

fn with_roots(options: SslOpts, root: Option<&str>) -> DbResult<SslOpts> {
    let options = options.with_disable_built_in_roots(true);
    match root {
        Some(path) if path != "system" => {
            Ok(options.with_root_certs(vec![file("sslrootcert", path)?.into()]))
        }
        _ => {
            let found = rustls_native_certs::load_native_certs().certs;
            let roots = found.into_iter().map(|certificate| certificate.to_vec());
            Ok(options.with_root_certs(roots.map(Into::into).collect()))
        }
    }
}

/// A file that is there; named when it is not.
fn file(parameter: &str, path: &str) -> DbResult<PathBuf> {
    match std::fs::metadata(path) {
        Ok(_) => Ok(PathBuf::from(path)),
        Err(error) => Err(refused(format!("{parameter} `{path}`: {error}"))),
    }
}

fn decoded(part: &str, text: &str) -> DbResult<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    let unreadable = || refused(format!("{part} in its URL cannot be read"));
    while let Some((&first, tail)) = rest.split_first() {
        if first == b'%' {
            let pair = tail
                .get(..2)
                .and_then(|pair| std::str::from_utf8(pair).ok())
                .and_then(|pair| u8::from_str_radix(pair, 16).ok());
            bytes.push(pair.ok_or_else(unreadable)?);
            rest = &tail[2..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).map_err(|_| unreadable())
}

fn refused(message: impl std::fmt::Display) -> DatabaseError {
    DatabaseError::Refused(message.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_with_its_escapes() {
        let target = target("mysql://an%40a:p%2fw%3a@[::1]:3307/shop?sslmode=disable").unwrap();
        assert_eq!(target.opts.user(), Some("an@a"));
        assert_eq!(target.opts.pass(), Some("p/w:"));
        assert_eq!(target.opts.ip_or_hostname(), "::1");
        assert_eq!(target.opts.tcp_port(), 3307);
        assert_eq!(target.opts.db_name(), Some("shop"));
        assert!(target.opts.ssl_opts().is_none());
    }

    #[test]
    fn what_is_wrong_is_named_without_the_password() {
        for (url, part) in [
            ("mysql://u:secret@h/d?sslmode=maybe", "sslmode `maybe`"),
            ("mysql://u:secret@h/d?sslcert=/a", "go together"),
            ("mysql://u:secret@h/d?charset=x", "`charset`"),
            ("mysql://u:secret@h", "no database"),
            ("mysql://u:s@cret@h/d", "%40"),
            ("postgres://u:secret@h/d", "mysql://"),
        ] {
            let told = target(url).map(|_| ()).unwrap_err().to_string();
            assert!(told.contains(part) && !told.contains("secret"), "{told}");
        }
    }
}
