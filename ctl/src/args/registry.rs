//! What a publisher may type.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use jiff::SignedDuration;

#[derive(Debug, Subcommand)]
pub(crate) enum Registry {
    /// Make an empty registry and its signing keys
    Init(RegistryInit),
    /// Make keys, list them
    #[command(subcommand)]
    Key(RegistryKey),
    /// Let a team sign models
    Delegate(RegistryDelegate),
    /// Sign a bundle into the registry, as one team's genuine model
    Add(RegistryAdd),
    /// Tell a group of devices which model version to run
    Publish(RegistryPublish),
    /// Give a role other keys
    Rotate(RegistryRotate),
    /// Take a key away from its role
    Revoke(RegistryRevoke),
    /// Sign what is staged, with the keys of this machine
    Sign(RegistrySign),
    /// Take in what people signed, and sign anew what would expire; to be run daily
    Refresh(RegistryRefresh),
    /// Check a whole registry offline: every signature, expiry and file
    Verify(RegistryVerify),
    /// Show every role's version and expiry
    Status(RegistryStatus),
    /// Serve a registry folder over HTTP, for trying things out
    Serve(RegistryServe),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  tractctl registry init registry --team vision
  # then keep keys/root-*.age offline: two of three replace every other key")]
pub(crate) struct RegistryInit {
    /// Folder to make; whatever serves static files can serve it
    pub(crate) dir: PathBuf,
    #[command(flatten)]
    pub(crate) keys: Keys,
    /// A team that may sign models (repeatable)
    #[arg(long, value_name = "NAME", default_value = "main")]
    pub(crate) team: Vec<String>,
    /// Keys of the root role
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) root_keys: usize,
    /// How many of them must sign a root
    #[arg(long, value_name = "M", default_value_t = 2)]
    pub(crate) threshold: usize,
    /// scrypt work factor (log2) of the key files [default: about a second of this machine each]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=22))]
    pub(crate) work_factor: Option<u8>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  tractctl registry add digits-1.tractd.tar.zst --registry registry --team vision")]
pub(crate) struct RegistryAdd {
    /// Bundle file that `tractctl pack` wrote
    pub(crate) bundle: PathBuf,
    /// Registry folder
    #[arg(long, value_name = "DIR", default_value = "registry")]
    pub(crate) registry: PathBuf,
    #[command(flatten)]
    pub(crate) keys: Keys,
    /// The team that vouches for it
    #[arg(long, value_name = "NAME", default_value = "main")]
    pub(crate) team: String,
    /// Devices never go below this version again
    #[arg(long, value_name = "VERSION")]
    pub(crate) min_version: Option<u64>,
    /// Sign nothing: leave the change in `staged/` for `registry sign`
    #[arg(long)]
    pub(crate) stage: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  tractctl rollout start digits@2 --percent 10 --group kitchen    # or: tractctl registry publish …
  tractctl rollout start digits@2 --waves 5,25,100                # then: tractctl rollout next digits
  tractctl rollout start digits@2 --waves 5,25,100 --every 6h --window 22:00-04:00")]
pub(crate) struct RegistryPublish {
    /// MODEL@VERSION, as added before
    pub(crate) model: String,
    /// Registry folder
    #[arg(long, value_name = "DIR", default_value = "registry")]
    pub(crate) registry: PathBuf,
    #[command(flatten)]
    pub(crate) keys: Keys,
    /// The group of devices that shall run it
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub(crate) group: String,
    /// Share of the group; the same devices stay in it as it grows
    #[arg(long, value_name = "PERCENT", default_value_t = 100, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) percent: u8,
    /// Growing shares; the first is out at once, `rollout next` opens each other one
    #[arg(long, value_name = "PERCENT,…", value_delimiter = ',', conflicts_with = "percent")]
    pub(crate) waves: Vec<u8>,
    /// Have the waves begin by themselves, so long after each other (30min, 6h, 2d)
    #[arg(long, value_name = "TIME", requires = "waves", value_parser = duration)]
    pub(crate) every: Option<Duration>,
    /// When in the day devices take it, in UTC; over midnight when it ends earlier than it begins
    #[arg(long, value_name = "HH:MM-HH:MM")]
    pub(crate) window: Option<String>,
    /// Let devices go back to it from a higher version
    #[arg(long)]
    pub(crate) rollback: bool,
    /// How long a device tries it beside the version before, under real requests; 0 for no trial
    #[arg(long, value_name = "SECS", default_value_t = tractd_registry::HEALTHY_SECS)]
    pub(crate) healthy_secs: u64,
    /// A new rollout of a version that is out already: devices that refused it try again
    #[arg(long)]
    pub(crate) again: bool,
    /// Sign nothing: leave the change in `staged/` for `registry sign`
    #[arg(long)]
    pub(crate) stage: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  tractctl registry refresh --registry registry

Needs the keys of timestamp and snapshot; others only when their role is near its end.")]
pub(crate) struct RegistryRefresh {
    /// Registry folder
    #[arg(long, value_name = "DIR", default_value = "registry")]
    pub(crate) registry: PathBuf,
    #[command(flatten)]
    pub(crate) keys: Keys,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  tractctl registry status --registry registry")]
pub(crate) struct RegistryStatus {
    /// Registry folder
    #[arg(long, value_name = "DIR", default_value = "registry")]
    pub(crate) registry: PathBuf,
    #[command(flatten)]
    pub(crate) keys: Keys,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  tractctl registry serve registry --listen 127.0.0.1:8080

Plain HTTP is enough: devices trust signatures, not the server. For real use, any web server will do.")]
pub(crate) struct RegistryServe {
    /// Registry folder
    #[arg(default_value = "registry")]
    pub(crate) dir: PathBuf,
    /// Address to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8080")]
    pub(crate) listen: std::net::SocketAddr,
}

/// Where the signing keys are and how they are opened.
#[derive(Debug, Args)]
pub(crate) struct Keys {
    /// Folder of encrypted keys [default: `keys` beside the registry folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) keys: Option<PathBuf>,
    /// File whose first line is the passphrase [else TRACTD_KEY_PASSPHRASE, else a prompt]
    #[arg(long, value_name = "FILE")]
    pub(crate) passphrase_file: Option<PathBuf>,
}

/// The registry a verb reads.
#[derive(Debug, Args)]
pub(crate) struct RegistryPlace {
    /// Registry folder
    #[arg(long, value_name = "DIR", default_value = "registry")]
    pub(crate) registry: PathBuf,
    #[command(flatten)]
    pub(crate) keys: Keys,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// The registry a verb changes.
#[derive(Debug, Args)]
pub(crate) struct Change {
    #[command(flatten)]
    pub(crate) place: RegistryPlace,
    /// Sign nothing: leave the change in `staged/` for `registry sign`
    #[arg(long)]
    pub(crate) stage: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RegistryKey {
    /// Make a key in a folder, which needs no registry beside it
    New(RegistryKeyNew),
    /// List the public halves in a folder
    #[command(after_help = "Example:\n  tractctl registry key list --keys keys")]
    List(RegistryPlace),
}

#[derive(Debug, Args)]
#[command(after_help = "Example, on the machine of who will sign:
  tractctl registry key new team-audio-ann --role team-audio --keys ann
  # then hand ann/team-audio-ann.pub.json to whoever holds the targets key")]
pub(crate) struct RegistryKeyNew {
    /// Name of the key, and of its file
    pub(crate) name: String,
    /// The role it will sign: root, targets, snapshot, timestamp, rollout, team-NAME
    #[arg(long, value_name = "ROLE")]
    pub(crate) role: String,
    #[command(flatten)]
    pub(crate) keys: Keys,
    /// scrypt work factor (log2) of the key file [default: about a second of this machine]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=22))]
    pub(crate) work_factor: Option<u8>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  tractctl registry delegate audio --key ann.pub.json --key bea.pub.json --threshold 2")]
pub(crate) struct RegistryDelegate {
    /// The team; it signs models below models/TEAM/
    pub(crate) team: String,
    /// Public half of a key the team brings (repeatable) [default: one is made here]
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Vec<PathBuf>,
    /// How many of its keys must sign
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) threshold: usize,
    #[command(flatten)]
    pub(crate) change: Change,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tractctl registry rotate timestamp
  tractctl registry rotate root --remove root-2
  tractctl registry rotate team-audio --remove team-audio-ann --key cem.pub.json

The root, and every role the root names, need the root keys; teams and rollout the targets key.")]
pub(crate) struct RegistryRotate {
    /// root, targets, snapshot, timestamp, rollout, team-NAME
    pub(crate) role: String,
    /// Name of a key that goes (repeatable) [default: all]
    #[arg(long, value_name = "NAME")]
    pub(crate) remove: Vec<String>,
    /// Public half of a key that comes (repeatable) [default: as many are made here as go]
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Vec<PathBuf>,
    /// How many must sign from now on [default: as many as before]
    #[arg(long, value_name = "N")]
    pub(crate) threshold: Option<usize>,
    #[command(flatten)]
    pub(crate) change: Change,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  tractctl registry revoke root-3")]
pub(crate) struct RegistryRevoke {
    /// Name of the key
    pub(crate) key: String,
    #[command(flatten)]
    pub(crate) change: Change,
}

#[derive(Debug, Args)]
#[command(after_help = "Example, on a machine without a network:
  tractctl registry sign /media/stick/2.root.json --keys safe-1 --show
  tractctl registry sign /media/stick/2.root.json --keys safe-1")]
pub(crate) struct RegistrySign {
    /// Staged files, VERSION.ROLE.json
    #[arg(required = true)]
    pub(crate) files: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) keys: Keys,
    /// Only show what would be signed
    #[arg(long)]
    pub(crate) show: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  tractctl registry verify registry --root pinned-root.json")]
pub(crate) struct RegistryVerify {
    /// Registry folder, or a copy of what is served
    #[arg(default_value = "registry")]
    pub(crate) dir: PathBuf,
    /// Root to begin at [default: the registry's own first one]
    #[arg(long, value_name = "FILE")]
    pub(crate) root: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Rollout {
    /// Begin a rollout, or change the share of one that is out
    Start(RegistryPublish),
    /// Have devices that have not installed it wait
    #[command(after_help = "Example:\n  tractctl rollout pause digits --group kitchen")]
    Pause(RolloutSteer),
    /// Let them go on
    #[command(after_help = "Example:\n  tractctl rollout resume digits --group kitchen")]
    Resume(RolloutSteer),
    /// Have the next wave begin now
    #[command(after_help = "Example:\n  tractctl rollout next digits --group kitchen")]
    Next(RolloutSteer),
    /// Give it up for good; devices that run it keep it
    #[command(after_help = "Example:\n  tractctl rollout abort digits --group kitchen")]
    Abort(RolloutSteer),
    /// Show every group's rollouts
    #[command(after_help = "Example:\n  tractctl rollout status")]
    Status(RegistryPlace),
}

#[derive(Debug, Args)]
pub(crate) struct RolloutSteer {
    /// The model
    pub(crate) model: String,
    /// The group of devices
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub(crate) group: String,
    #[command(flatten)]
    pub(crate) change: Change,
}

/// `30min`, `6h`, `2d`.
fn duration(text: &str) -> Result<Duration, String> {
    // A day is 24 hours here: calendars do not matter to a fleet in UTC.
    let (text, days) = match text.strip_suffix('d').map(str::parse::<u32>) {
        Some(Ok(days)) => ("0s", days),
        _ => (text, 0),
    };
    let parsed: SignedDuration = text.parse().map_err(|_| "no time, as in 30min, 6h or 2d".to_owned())?;
    let parsed = parsed + SignedDuration::from_hours(24 * i64::from(days));
    let positive = Duration::try_from(parsed).ok().filter(|time| !time.is_zero());
    positive.ok_or_else(|| "must be longer than nothing".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_between_waves_are_minutes_hours_and_days() {
        let hours = |hours: u64| Ok(Duration::from_secs(hours * 3_600));
        assert_eq!(duration("30min"), Ok(Duration::from_secs(1_800)));
        assert_eq!([duration("6h"), duration("2d")], [hours(6), hours(48)]);
        for bad in ["", "0s", "-6h", "soon", "6"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
