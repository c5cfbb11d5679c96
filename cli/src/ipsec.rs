//! `hawser ipsec`: the mesh's secret in its file; carrying the file to the nodes is the operator's.

use std::path::Path;

use anyhow::{Context, Result};
use hawser_model::Epoch;
use hawser_tunnels::{Derivation, Keyring};
use serde::Serialize;

use crate::args::Format;
use crate::output::{Refused, json, line, replace, write};

#[derive(Serialize)]
struct Written<'a> {
    file: &'a Path,
    epochs: Vec<u32>,
}

/// A first secret, to a file or to standard output.
pub(crate) fn secret(out: Option<&Path>) -> Result<()> {
    let text = secret_of(Epoch::FIRST)?;
    match out {
        None => line(&text),
        Some(file) if file.exists() => {
            let file = file.display();
            let said = format!(
                "{file} is there already, and nodes may hold what is in it. fix: `hawser ipsec rotate {file}`"
            );
            Err(Refused(said).into())
        }
        Some(file) => write(file, &format!("{text}\n"), true),
    }
}

/// The next secret beside the one that is there.
pub(crate) fn rotate(file: &Path, format: Format) -> Result<()> {
    let (text, keyring) = read(file)?;
    let (shown, epochs) = (file.display(), epochs(&keyring));
    let [epoch] = epochs[..] else {
        let said = format!(
            "{shown} holds two secrets already. fix: bring it to every node of every cluster, and when `hawser status` on each of them \
             says that it sends by the newest alone, `hawser ipsec retire {shown}`"
        );
        return Err(Refused(said).into());
    };
    if keyring.iter().any(|secret| secret.derivation() == Derivation::Cilium) {
        let said = format!(
            "{shown} is in Cilium's form. fix: write Cilium's next key below it, with the next key id"
        );
        return Err(Refused(said).into());
    }
    let next = epoch.checked_add(1).and_then(Epoch::new).context("there is no epoch after this one")?;
    let text = format!("{}\n{}\n", text.trim_end(), secret_of(next)?);
    replace(file, &text, true)?;
    if format == Format::Json {
        return json(&Written { file, epochs: vec![epoch, next.get()] });
    }
    line(&format!(
        "{shown}: a secret of epoch {next} beside that of epoch {epoch}. Nothing uses it yet. Next:"
    ))?;
    line("  1. bring the file to every node of every cluster; agents take it up within 5 s, in any order")?;
    line(&format!(
        "  2. when `hawser status` on every node says that it sends by epoch {next} alone: hawser ipsec retire {shown}"
    ))?;
    line("  3. bring the file to every node again")
}

/// The newest alone.
pub(crate) fn retire(file: &Path, format: Format) -> Result<()> {
    let (text, keyring) = read(file)?;
    let shown = file.display();
    let [old, new] = epochs(&keyring)[..] else {
        return Err(Refused(format!(
            "{shown} holds one secret. fix: `hawser ipsec rotate {shown}` comes first"
        ))
        .into());
    };
    let is_of = |text: &str, epoch| Keyring::parse(text).is_ok_and(|ring| epochs(&ring) == [epoch]);
    let kept: String = text.lines().filter(|text| !is_of(text, old)).flat_map(|text| [text, "\n"]).collect();
    replace(file, &kept, true)?;
    if format == Format::Json {
        return json(&Written { file, epochs: vec![new] });
    }
    line(&format!(
        "{shown}: the secret of epoch {new} alone. Bring the file to every node of every cluster; an agent lets go of epoch {old} when no \
         peer needs it any more"
    ))
}

fn read(file: &Path) -> Result<(String, Keyring)> {
    let shown = file.display();
    let text = std::fs::read_to_string(file).with_context(|| {
        format!("reading {shown}. fix: name the file that the nodes' agent.yaml has as ipsecSecret; `hawser ipsec secret -o {shown}` makes the first")
    })?;
    let keyring = Keyring::parse(&text).map_err(|why| Refused(format!("{shown}: {why}")))?;
    Ok((text, keyring))
}

fn epochs(keyring: &Keyring) -> Vec<u32> {
    keyring.iter().map(|secret| secret.epoch().get()).collect()
}

fn secret_of(epoch: Epoch) -> Result<String> {
    let mut bytes = [0; 32];
    let random = rustls::crypto::aws_lc_rs::default_provider().secure_random;
    random
        .fill(&mut bytes)
        .map_err(|_| anyhow::anyhow!("no random numbers. fix: see what getrandom(2) says on this machine"))?;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{epoch} {hex}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_made_rotated_and_retired_and_is_its_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ipsec.secret");
        let now = || epochs(&read(&file).unwrap().1);
        assert!(rotate(&file, Format::Table).unwrap_err().to_string().contains("hawser ipsec secret -o"));
        secret(Some(&file)).unwrap();
        let first = read(&file).unwrap().0;
        assert!(secret(Some(&file)).unwrap_err().is::<Refused>(), "nodes may hold it");
        assert!(retire(&file, Format::Table).unwrap_err().is::<Refused>());
        rotate(&file, Format::Table).unwrap();
        assert_eq!(now(), [1, 2]);
        assert!(read(&file).unwrap().0.starts_with(first.trim_end()), "the first stays as it was");
        assert!(rotate(&file, Format::Table).unwrap_err().is::<Refused>(), "one after the other");
        retire(&file, Format::Json).unwrap();
        assert_eq!(now(), [2]);
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
    }
}
