//! Processes of the lab: each with a log file, killed when dropped, and quoted when something fails.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Lines of a log shown when its process is to blame.
const TAIL_LINES: usize = 30;

/// A long-running process.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with its output appended to `<logs>/<name>.log`.
    pub fn start(name: &str, mut command: Command, logs: &Path) -> Result<Self> {
        let log = logs.join(format!("{}.log", name.replace('/', "-")));
        let file = File::options().create(true).append(true).open(&log);
        let file = file.with_context(|| format!("opening {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("a second handle of the log")?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> &Path {
        &self.log
    }

    /// An error with the end of the log when the process has ended.
    pub fn check_alive(&mut self) -> Result<()> {
        match self.child.try_wait().with_context(|| format!("asking after {}", self.name))? {
            None => Ok(()),
            Some(status) => bail!("{} ended: {status}\n{}", self.name, tail(&self.log)),
        }
    }

    /// SIGKILL, then gone for sure.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("killing {}", self.name))?;
        self.child.wait().with_context(|| format!("waiting for {}", self.name))?;
        Ok(())
    }

    /// SIGTERM, then waits until it ended by itself.
    pub fn terminate(&mut self, patience: Duration) -> Result<ExitStatus> {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)
            .with_context(|| format!("SIGTERM to {}", self.name))?;
        let until = Instant::now() + patience;
        loop {
            if let Some(status) =
                self.child.try_wait().with_context(|| format!("waiting for {}", self.name))?
            {
                return Ok(status);
            }
            if Instant::now() > until {
                bail!("{} did not stop within {patience:?} of SIGTERM\n{}", self.name, tail(&self.log));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last lines of a log, indented.
pub fn tail(log: &Path) -> String {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let shown = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    let mut out = format!("  the last lines of {}:", log.display());
    for line in shown {
        out.push_str("\n    ");
        out.push_str(line);
    }
    if shown.is_empty() {
        out.push_str("\n    (nothing)");
    }
    out
}

/// Runs a command to its end; an error quotes what it said.
pub fn run(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        bail!("{}: {}\n{}", describe(command), output.status, said(&output));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command to its end, however it ends.
pub fn output(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).output().with_context(|| format!("starting {}", describe(command)))
}

/// Runs a command with `input` on its standard input.
pub fn run_with_input(command: &mut Command, input: &str) -> Result<String> {
    use std::io::Write;
    let name = describe(command);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {name}"))?;
    let mut stdin = child.stdin.take().context("the child's input")?;
    let written = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().with_context(|| format!("waiting for {name}"))?;
    if !output.status.success() {
        bail!("{name}: {}\n{}\ninput was:\n{input}", output.status, said(&output));
    }
    written.with_context(|| format!("feeding {name}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Both streams of a finished command.
pub fn said(output: &Output) -> String {
    let text = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).trim().to_owned());
    text.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n")
}

fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default().display().to_string();
    let args = command.get_args().map(|arg| arg.display().to_string());
    std::iter::once(program).chain(args).collect::<Vec<_>>().join(" ")
}
