//! `lamella systems`: the catalogue.

use clap::Args;
use lamella::codec::{System, Wing};
use serde::Serialize;

use super::{CliError, Common, Exit, print};

/// List the catalogue's systems and the codecs that recipes can name
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  lamella systems\n  lamella systems --wing weights --json")]
pub(crate) struct Systems {
    /// Only one wing: weights, kv, vectors, gradients, context, audio, image, video, space, codes, representation
    #[arg(long)]
    wing: Option<String>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Serialize)]
struct Row<'a> {
    id: &'a str,
    name: &'a str,
    wing: Wing,
    compresses: &'a str,
    title: Option<&'static str>,
    state: &'a str,
    recipe: Option<&'a str>,
    claim: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct CodecRow<'a> {
    name: &'a str,
    summary: &'a str,
    arguments: Vec<(&'a str, &'a str, &'a str)>,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    schema: u32,
    systems: Vec<Row<'a>>,
    codecs: Vec<CodecRow<'a>>,
}

/// Reads a wing's name.
pub(crate) fn wing(name: &str) -> Result<Wing, CliError> {
    serde_json::from_value(serde_json::Value::String(name.to_owned())).map_err(|_| {
        CliError::usage(format!("no wing is called `{name}`")).hint(
            "weights, kv, vectors, gradients, context, audio, image, video, space, codes, representation",
        )
    })
}

fn row(system: &System) -> Row<'_> {
    Row {
        id: system.id,
        name: system.name,
        wing: system.wing,
        compresses: system.compresses,
        title: lamella::system_title(system.id),
        state: if system.measure.is_some() { "built" } else { "planned" },
        recipe: system.recipe,
        claim: system.claim,
    }
}

impl Systems {
    pub(crate) fn main(self) -> Result<Exit, CliError> {
        self.common.start()?;
        let only = self.wing.as_deref().map(wing).transpose()?;
        let catalogue = lamella::catalogue();
        let systems: Vec<Row<'_>> = catalogue
            .systems()
            .iter()
            .filter(|system| only.is_none_or(|wing| wing == system.wing))
            .map(row)
            .collect();
        let codecs: Vec<CodecRow<'_>> = catalogue
            .codecs()
            .iter()
            .map(|codec| CodecRow {
                name: codec.name,
                summary: codec.summary,
                arguments: codec.arguments.to_vec(),
            })
            .collect();
        if self.common.json {
            print::json(&Report { schema: 1, systems, codecs });
            return Ok(Exit::Done);
        }
        let rows: Vec<Vec<String>> = systems
            .iter()
            .map(|row| {
                let wing = serde_json::to_value(row.wing).ok();
                let wing = wing.and_then(|wing| wing.as_str().map(str::to_owned)).unwrap_or_default();
                vec![
                    row.id.to_owned(),
                    wing,
                    row.state.to_owned(),
                    row.name.to_owned(),
                    row.compresses.to_owned(),
                ]
            })
            .collect();
        let lines: Vec<String> = rows
            .iter()
            .map(|row| format!("{}  {:<14}  {:<7}  {}: {}", row[0], row[1], row[2], row[3], row[4]))
            .collect();
        let codecs: Vec<String> =
            codecs.iter().map(|codec| format!("{:<6} {}", codec.name, codec.summary)).collect();
        print::data(&format!("{}\n\ncodecs that recipes can name:\n{}", lines.join("\n"), codecs.join("\n")));
        Ok(Exit::Done)
    }
}
