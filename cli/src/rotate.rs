//! `hawser ca rotate`: writes one step after the other into the `pki` directory, each when all have taken the one before.
//!
//! It can be killed and started again at any point: what lies in the directory says where it was.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use hawser_api::admin::{CaMember, CaStatusReply, CaStatusRequest};
use hawser_model::{ClusterName, Timestamp};
use hawser_pki::{Authority, CA_CERT, CA_KEY, CommonName, Leaf, Phase, ROTATION, Rotation, Write};

use crate::args::{Format, Global, RotateArgs};
use crate::connection::{admin, answer};
use crate::output::{Refused, json, line, replace, table};

/// How often the API server is asked.
const ASK: Duration = Duration::from_millis(250);
const ADMIN_CERT: &str = "admin.crt";
const ADMIN_KEY: &str = "admin.key";

pub(crate) async fn rotate(global: &Global, args: &RotateArgs) -> Result<()> {
    if args.status {
        return status(&ask(global).await?, args.shape.output);
    }
    // Nobody begins what nobody would notice.
    let reply = ask(global).await?;
    let mut authority = match (read(&global.pki)?, args.abort) {
        (Authority::Settled(_), true) => bail!(Refused("there is no rotation to abort".into())),
        (Authority::Settled(ca), false) => {
            check_begin(&reply, &ca.cert().fingerprint(), args)?;
            Authority::Changing(Rotation::start(ca, now())?)
        }
        (Authority::Changing(rotation), true) => {
            let off = rotation.abort().map_err(|error| Refused(error.to_string()))?;
            Authority::Changing(off)
        }
        (Authority::Changing(rotation), false) => Authority::Changing(rotation),
    };
    let table = args.shape.output == Format::Table;
    while let Authority::Changing(rotation) = &authority {
        if table {
            line(&say(rotation))?;
        }
        write_step(&global.pki, &authority)?;
        wait(global, rotation, args, table).await?;
        let Authority::Changing(rotation) = authority else { break };
        authority = rotation.advance()?;
    }
    write_step(&global.pki, &authority)?;
    if !table {
        return json(&settled(global).await?);
    }
    line(&format!("done: the CA of {} is {}", reply.cluster, authority.issuing().cert().fingerprint()))?;
    line(
        "next: bring ca.crt and admin.crt to wherever else admins have them; other admins: `hawser ca admin --user USER --out DIR`",
    )
}

/// Once the servers have read the end of it, too.
async fn settled(global: &Global) -> Result<CaStatusReply> {
    let start = Instant::now();
    loop {
        let reply = ask(global).await?;
        if reply.phase.is_empty() || start.elapsed() > Duration::from_secs(10) {
            return Ok(reply);
        }
        tokio::time::sleep(ASK).await;
    }
}

fn now() -> Timestamp {
    Timestamp::from_system(SystemTime::now())
}

fn say(rotation: &Rotation) -> String {
    let next = rotation.next().cert().fingerprint();
    match rotation.phase() {
        Phase::Prepare => format!("prepare: the new CA {next} is trusted beside the old one"),
        Phase::Issue => "issue: the new CA signs, every certificate is made anew".into(),
        Phase::Retire => "retire: the old CA is no longer trusted".into(),
        Phase::Abort => "abort: the old CA signs again, the new one is given up".into(),
    }
}

pub(crate) fn read(pki: &Path) -> Result<Authority> {
    let file = |name: &str| {
        std::fs::read_to_string(pki.join(name)).map_err(|error| {
            Refused(format!(
                "{} cannot be read: {error}. fix: run this where `hawser ca init` was run, or name the directory with --pki",
                pki.join(name).display()
            ))
        })
    };
    let rotation = if pki.join(ROTATION).exists() { Some(file(ROTATION)?) } else { None };
    let authority = Authority::read(&file(CA_CERT)?, &file(CA_KEY)?, rotation.as_deref());
    Ok(authority.map_err(|error| Refused(format!("the CA in {}: {error}", pki.display())))?)
}

/// The state's own files, and the admin's certificate by the CA that signs. Nothing is written that is there already.
fn write_step(pki: &Path, authority: &Authority) -> Result<()> {
    for write in authority.writes() {
        match write {
            Write::Put { name, text, secret } => {
                if std::fs::read_to_string(pki.join(name)).is_ok_and(|there| there == text) {
                    continue;
                }
                replace(&pki.join(name), &text, secret)?;
            }
            Write::Remove { name } => match std::fs::remove_file(pki.join(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("removing {}", pki.join(name).display()));
                }
                _ => {}
            },
        }
    }
    renew_admin(pki, authority, false)
}

/// Another certificate for the same key, when another CA signs or when that is asked for.
pub(crate) fn renew_admin(pki: &Path, authority: &Authority, anyway: bool) -> Result<()> {
    let path = pki.join(ADMIN_CERT);
    let Ok(text) = std::fs::read_to_string(&path) else { return Ok(()) };
    let issuing = authority.issuing();
    let leaf = Leaf::from_pem(&text).with_context(|| format!("reading {}", path.display()))?;
    let same = hawser_pki::CaSet::from(issuing.cert().clone()).signed_pem(&text);
    if same && !anyway {
        return Ok(());
    }
    let Some(CommonName::Admin(user)) = CommonName::parse(&leaf.name, issuing.cluster()) else {
        bail!(
            "{} is {}, no admin's. fix: restore it, or `hawser ca admin --user USER --out DIR`",
            path.display(),
            leaf.name
        );
    };
    let key = std::fs::read_to_string(pki.join(ADMIN_KEY)).context("reading admin.key")?;
    let issued = issuing.renew_admin(&user, &key, now()).context("admin.key")?;
    replace(&path, &issued.pem(), false)
}

async fn ask(global: &Global) -> Result<CaStatusReply> {
    answer(admin(global).await?.ca_status(CaStatusRequest {}).await)
}

/// What can be known to fail is refused before anything is changed.
fn check_begin(reply: &CaStatusReply, ca: &str, args: &RotateArgs) -> Result<()> {
    if !reply.cas.iter().any(|theirs| theirs.fingerprint == ca) {
        let theirs = reply.cas.first().map_or("none", |theirs| theirs.fingerprint.as_str());
        bail!(Refused(format!(
            "the API server of {} uses the CA {theirs}, and in --pki is {ca}. fix: name the directory that the server reads",
            reply.cluster
        )));
    }
    let abandoned: BTreeSet<&str> = args.abandon.iter().map(String::as_str).collect();
    let known: BTreeSet<String> = reply.members.iter().map(name).collect();
    if let Some(unknown) = abandoned.iter().find(|name| !known.contains(**name)) {
        let known = known.into_iter().collect::<Vec<_>>().join(", ");
        bail!(Refused(format!("--abandon {unknown}: nobody is called that. fix: one of {known}")));
    }
    Ok(())
}

/// `agent/node-1`, `peer/eu-west`.
fn name(member: &CaMember) -> String {
    format!("{}/{}", member.kind, member.name)
}

/// Until all have taken the phase: nobody lacks anything of what it asks.
async fn wait(global: &Global, rotation: &Rotation, args: &RotateArgs, table: bool) -> Result<()> {
    let start = Instant::now();
    let mut told = String::new();
    loop {
        let waits = match ask(global).await {
            Ok(reply) => waits(&reply, rotation.phase(), &args.abandon),
            // The server may be starting again: the step is on disk, and it will read it.
            Err(error) => vec![format!("the API server: {error:#}")],
        };
        if waits.is_empty() {
            return Ok(());
        }
        let waiting = waits.join("; ");
        if args.force && start.elapsed() > args.timeout() {
            return line_if(table, &format!("  --force: goes on without {waiting}"));
        }
        if start.elapsed() > args.timeout() {
            let phase = rotation.phase().as_str();
            return Err(anyhow!(
                "the rotation is in its {phase} phase and waits for {waiting}. fix: bring them back and say `hawser ca rotate` \
                 again, which goes on here; or give up those that are gone with --abandon KIND/NAME{}",
                if rotation.phase() == Phase::Retire { "" } else { "; or --abort" }
            ));
        }
        if told != waiting && start.elapsed() > Duration::from_secs(2) {
            line_if(table, &format!("  waits for {waiting}"))?;
            told = waiting;
        }
        tokio::time::sleep(ASK).await;
    }
}

fn line_if(table: bool, text: &str) -> Result<()> {
    if table { line(text) } else { Ok(()) }
}

/// Whom this phase waits for, and for what.
fn waits(reply: &CaStatusReply, phase: Phase, abandoned: &[String]) -> Vec<String> {
    if !reply.problem.is_empty() {
        return vec![format!("the API server: {}", reply.problem)];
    }
    if reply.phase != phase.as_str() {
        return vec!["the API server to read it".into()];
    }
    let lacking = reply.members.iter().filter(|member| !member.lacks.is_empty());
    let counts = lacking.filter(|member| !abandoned.contains(&name(member)));
    counts.map(|member| format!("{} ({})", name(member), member.lacks)).collect()
}

fn status(reply: &CaStatusReply, format: Format) -> Result<()> {
    if format == Format::Json {
        return json(reply);
    }
    line(&match reply.phase.as_str() {
        "" => format!("{}: no rotation", reply.cluster),
        phase => format!("{}: {phase}, since {} in rotation", reply.cluster, reply.started),
    })?;
    for ca in &reply.cas {
        let issues = if ca.issues { "signs" } else { "is trusted" };
        line(&format!("{issues}  {}  until {}", ca.fingerprint, ca.not_after))?;
    }
    if !reply.problem.is_empty() {
        line(&format!("problem: {}", reply.problem))?;
    }
    let state = |member: &CaMember| match member.lacks.as_str() {
        "" if member.trusts.is_empty() => "never said which CAs it trusts".to_owned(),
        "" => "up to date".to_owned(),
        lacks => lacks.to_owned(),
    };
    let rows = reply.members.iter().map(|member| vec![name(member), state(member)]);
    table(&["MEMBER", "STATE"], &rows.collect::<Vec<_>>())
}

/// `hawser ca admin`: this admin's certificate anew, or another admin's directory.
pub(crate) fn admin_certificate(pki: &Path, user: Option<&str>, out: Option<&Path>) -> Result<()> {
    let authority = read(pki)?;
    let (Some(user), Some(out)) = (user, out) else {
        if !pki.join(ADMIN_CERT).exists() {
            bail!(Refused(format!(
                "{} does not exist. fix: `hawser ca admin --user USER --out {}`",
                pki.join(ADMIN_CERT).display(),
                pki.display()
            )));
        }
        renew_admin(pki, &authority, true)?;
        let leaf = Leaf::from_pem(&std::fs::read_to_string(pki.join(ADMIN_CERT))?)?;
        return line(&format!("{} is good until {}", leaf.name, leaf.not_after));
    };
    let user = hawser_pki::UserName::parse(user)
        .ok_or_else(|| Refused(format!("--user {user:?} is not 1 to 32 of a-z, 0-9, '.', '_', '-'")))?;
    if let Some(there) = [ADMIN_CERT, ADMIN_KEY].iter().map(|name| out.join(name)).find(|path| path.exists())
    {
        bail!(Refused(format!(
            "{} exists and is not overwritten. fix: name another directory",
            there.display()
        )));
    }
    let cluster: &ClusterName = authority.issuing().cluster();
    let issued = authority.issuing().issue_admin(&user, now())?;
    std::fs::create_dir_all(out).with_context(|| format!("{} cannot be made", out.display()))?;
    replace(&out.join(CA_CERT), &authority.trusted().pem(), false)?;
    replace(&out.join(ADMIN_KEY), &issued.key_pem, true)?;
    replace(&out.join(ADMIN_CERT), &issued.cert.pem(), false)?;
    line(&format!("admin {user} of {cluster} in {}, good until {}", out.display(), issued.cert.not_after))
}

#[cfg(test)]
#[path = "rotate_tests.rs"]
mod tests;
