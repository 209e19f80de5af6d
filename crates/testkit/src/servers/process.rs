//! A server process that cannot outlive this one.
//!
//! A small shell stands between. It waits on a pipe that only we hold: a line names the signal that stops the server;
//! the pipe's end, however we ended, kills the server and removes its folder.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};

const WATCHDOG: &str = r#"
folder=$1; log=$2; shift 2
setsid "$@" </dev/null >>"$log" 2>&1 &
server=$!
trap '' INT TERM HUP
read -r signal || signal=end
case $signal in
  end|KILL)
    children=$(cat "/proc/$server/task/$server/children" 2>/dev/null)
    kill -KILL "$server" "-$server" $children 2>/dev/null ;;
  *) kill -"$signal" "$server" ;;
esac
wait "$server"
for child in $children; do
  # A killed child stays as a zombie until the system's first process looks.
  while grep -q '^State:[[:space:]]*[^ZX]' "/proc/$child/status" 2>/dev/null; do sleep 0.02; done
done
if [ "$signal" = end ] && [ -n "$folder" ]; then rm -rf "$folder"; fi
exit 0
"#;

/// A running server, and the pipe that its life hangs on.
#[derive(Debug)]
pub(super) struct Guarded {
    watchdog: Child,
}

impl Guarded {
    /// Starts a server; when we are gone, so are it and the folder (where one is given).
    pub(super) fn start(
        command_line: &[String],
        environment: &[(String, String)],
        log: &Path,
        folder: Option<&Path>,
    ) -> Self {
        let mut command = Command::new("sh");
        command
            .args(["-c", WATCHDOG, "watchdog"])
            .arg(folder.unwrap_or(Path::new("")))
            .arg(log)
            .args(command_line);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let watchdog = command
            .spawn()
            .unwrap_or_else(|error| panic!("{command_line:?}: {error}"));
        Self { watchdog }
    }

    /// Sends a signal (`INT`, `TERM`, `KILL`, ...) and waits until the server and what it started are gone.
    pub(super) fn end(mut self, signal: &str) {
        let mut pipe = self.watchdog.stdin.take().expect("the pipe is taken once");
        writeln!(pipe, "{signal}").expect("the watchdog reads");
        drop(pipe);
        self.watchdog.wait().expect("the watchdog ends");
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if self.watchdog.stdin.take().is_some() {
            let _ = self.watchdog.wait();
        }
    }
}
