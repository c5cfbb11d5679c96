//! `hawser`: the operator's verbs. It asks and prints; what is asked is decided by the API server and the agent.

mod args;
mod ca;
mod cilium;
mod connection;
mod export;
mod ipsec;
mod mesh;
mod output;
mod rotate;
mod services;
mod status;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use crate::args::{Args, CaVerb, CiliumVerb, ExportVerb, IpsecVerb, ServiceVerb, Verb};

/// Bad arguments, or something that was refused before anything was changed (sysexits.h, EX_USAGE).
const EXIT_USAGE: u8 = 64;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Help and version are answers, not errors.
            let code = if error.use_stderr() { EXIT_USAGE } else { 0 };
            // A closed pipe is nobody to tell.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        eprintln!("hawser: a TLS provider is already installed");
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("hawser: no event loop: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(&args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hawser: {}", output::chain(&error));
            ExitCode::from(if error.is::<output::Refused>() { EXIT_USAGE } else { 1 })
        }
    }
}

async fn run(args: &Args) -> Result<()> {
    let global = &args.global;
    match &args.verb {
        Verb::Ca { verb: CaVerb::Init { cluster, id, user } } => ca::init(&global.pki, cluster, *id, user),
        Verb::Ca { verb: CaVerb::Token { node, out } } => ca::token(global, node, out.as_deref()).await,
        Verb::Ca { verb: CaVerb::Bundle { for_cluster, out } } => {
            ca::bundle(global, for_cluster, out.as_deref()).await
        }
        Verb::Ca { verb: CaVerb::Rotate(rotate) } => rotate::rotate(global, rotate).await,
        Verb::Ca { verb: CaVerb::Admin { user, out } } => {
            rotate::admin_certificate(&global.pki, user.as_deref(), out.as_deref())
        }
        Verb::Ipsec { verb: IpsecVerb::Secret { out } } => ipsec::secret(out.as_deref()),
        Verb::Ipsec { verb: IpsecVerb::Rotate { file, shape } } => ipsec::rotate(file, shape.output),
        Verb::Ipsec { verb: IpsecVerb::Retire { file, shape } } => ipsec::retire(file, shape.output),
        Verb::Connect { bundle, cilium, on_cilium, dry_run, policy_bypass_accepted } => {
            let (dry_run, bypass) = (*dry_run, *policy_bypass_accepted);
            match (bundle, cilium) {
                (_, Some(file)) => cilium::connect(global, file, on_cilium, dry_run, bypass).await,
                (Some(bundle), None) => mesh::connect(global, bundle, dry_run, bypass).await,
                (None, None) => Ok(()),
            }
        }
        Verb::Cilium { verb: CiliumVerb::Config { for_cluster, out, .. } } => {
            cilium::config(global, for_cluster.as_deref(), out).await
        }
        Verb::Disconnect { cluster } => mesh::disconnect(global, cluster).await,
        Verb::Status(shape) => status::show(global, shape.output).await,
        Verb::Service { verb: ServiceVerb::List(shape) } => services::list(global, shape.output).await,
        Verb::Service { verb: ServiceVerb::Get { service, shape } } => {
            services::get(global, service, shape.output).await
        }
        Verb::Export { verb: ExportVerb::List(shape) } => export::list(global, shape.output).await,
        Verb::Export { verb: ExportVerb::Show { peer, shape } } => {
            export::show(global, peer, shape.output).await
        }
        Verb::Plan(shape) => mesh::plan(global, shape.output).await,
        Verb::Version => output::line(&format!("hawser {}", env!("CARGO_PKG_VERSION"))),
    }
}
