//! `lamella reproduce`: whether systems do what their papers say.

use std::path::PathBuf;

use clap::Args;
use lamella::codec::{Claim, ClaimContext, ClaimSize, Progress, System};
use serde::Serialize;

use super::systems::wing;
use super::{CliError, Common, Exit, print};

/// Measure systems against their named baselines, in this run, on real data
///
/// Exit code 1 where a claim does not hold.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  lamella reproduce S056\n  lamella reproduce --wing weights --json\n  lamella reproduce --all --full"
)]
pub(crate) struct Reproduce {
    /// Ids of systems, `S056`
    #[arg(value_name = "ID", required_unless_present_any = ["wing", "all"])]
    ids: Vec<String>,
    /// Every built system of a wing
    #[arg(long, conflicts_with = "ids")]
    wing: Option<String>,
    /// Every built system
    #[arg(long, conflicts_with_all = ["ids", "wing"])]
    all: bool,
    /// Minutes instead of seconds: more data, more seeds
    #[arg(long)]
    full: bool,
    /// Directory of test data [default: `LAMELLA_DATA`, else `../shared/data` beside the project]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Directory of the project's assets [default: `assets`]
    #[arg(long, value_name = "DIR", default_value = "assets")]
    assets: PathBuf,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    claims: Vec<Claim>,
}

impl Reproduce {
    pub(crate) fn main(self) -> Result<Exit, CliError> {
        let bar = self.common.start()?;
        let catalogue = lamella::catalogue();
        let chosen: Vec<&System> = if self.all || self.wing.is_some() {
            let only = self.wing.as_deref().map(wing).transpose()?;
            let built = catalogue.systems().iter().filter(|system| system.measure.is_some());
            built.filter(|system| only.is_none_or(|wing| wing == system.wing)).collect()
        } else {
            self.ids
                .iter()
                .map(|id| {
                    catalogue.systems().iter().find(|system| system.id.eq_ignore_ascii_case(id)).ok_or_else(
                        || {
                            CliError::usage(format!("no system has the id `{id}`"))
                                .hint("`lamella systems` lists them")
                        },
                    )
                })
                .collect::<Result<_, _>>()?
        };
        if let Some(planned) = chosen.iter().find(|system| system.measure.is_none()) {
            return Err(CliError::usage(format!(
                "`{}` {} is planned, not built: it has no claim to run",
                planned.id, planned.name
            ))
            .hint("`lamella systems` says which are built"));
        }
        let data = self.data.clone().or_else(|| std::env::var_os("LAMELLA_DATA").map(PathBuf::from));
        let beside = PathBuf::from("../shared/data");
        let context = ClaimContext {
            size: if self.full { ClaimSize::Full } else { ClaimSize::Quick },
            assets: self.assets.clone(),
            data: data.or_else(|| beside.is_dir().then_some(beside)),
            catalogue: catalogue.clone(),
        };
        let mut claims = Vec::with_capacity(chosen.len());
        for (done, system) in chosen.iter().enumerate() {
            bar.advance("reproduce", done as u64, chosen.len() as u64, system.name);
            bar.check()?;
            let Some(measure) = system.measure else { continue };
            let claim = measure(&context)
                .map_err(|error| CliError::usage(format!("{} {}: {error}", system.id, system.name)))?;
            claims.push(claim);
        }
        bar.finish();
        let holds = claims.iter().all(|claim| claim.holds);
        if self.common.json {
            print::json(&Report { schema: 1, claims });
        } else if claims.is_empty() {
            print::data("no built system is among those asked for");
        } else {
            print::data(&claims.iter().map(describe).collect::<Vec<_>>().join("\n\n"));
        }
        Ok(if holds { Exit::Done } else { Exit::No })
    }
}

fn describe(claim: &Claim) -> String {
    format!(
        "{} {}: {}\n  claim     {}\n  measured  {} {:.5}, {} {:.5}\n  why       {} ({:.1} s)",
        claim.id,
        claim.name,
        if claim.holds { "holds" } else { "not reproduced" },
        claim.claim,
        claim.metric,
        claim.measured,
        claim.baseline_name,
        claim.baseline,
        claim.reason,
        claim.seconds,
    )
}
