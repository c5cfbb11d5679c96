//! The list of reasons is what people read: names are well formed, and the page in the book is the list.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use hawser_ebpf_abi::Reason;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/src/reference/reasons.md");

#[test]
fn every_reason_has_its_own_kebab_case_name_and_one_sentence() {
    let names: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(names.len(), Reason::ALL.len());
    for (index, reason) in Reason::ALL.iter().enumerate() {
        assert_eq!(*reason as usize, index, "the discriminant is the index of its counter");
        assert!(reason.name().bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{reason}");
        assert!(reason.text().ends_with('.') && !reason.text().contains(". "), "{reason}: one sentence");
    }
}

#[test]
fn the_page_of_reasons_is_current() {
    let mut page = String::from(
        "# Reasons\n\n<!-- Made from ebpf/abi/src/reason.rs by `UPDATE_EXPECT=1 cargo test -p hawser-ebpf-abi`. -->\n\n\
         Every packet and connection that a Hawser program sees leaves with one of these reasons, counted per CPU.\n\
         A *note* happens on the way to another reason.\n\n| reason | | program | meaning |\n| --- | --- | --- | --- |\n",
    );
    for reason in Reason::ALL {
        let (name, kind) = (reason.name(), reason.kind().as_str());
        writeln!(page, "| `{name}` | {kind} | `{}` | {} |", reason.program(), reason.text()).unwrap();
    }
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::create_dir_all(std::path::Path::new(PAGE).parent().unwrap()).unwrap();
        std::fs::write(PAGE, &page).unwrap();
    }
    let found = std::fs::read_to_string(PAGE).unwrap_or_default();
    assert!(found == page, "{PAGE} is stale; fix: UPDATE_EXPECT=1 cargo test -p hawser-ebpf-abi");
}
