//! The command line.

use crate::config::Config;
use clap::Parser;
use std::path::PathBuf;

/// Serves models to this machine over a Unix socket and MQTT.
///
/// Nothing needs to be configured: without any file or option tractd serves what lies in its models folder, on the
/// socket clients look for. It needs neither root, nor a broker, nor a registry.
#[derive(Debug, Parser)]
#[command(name = "tractd", version, after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Read this configuration, and conf.d/*.toml beside it, instead of /etc/tractd/tractd.toml
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Print the effective configuration and end; status 2 if a key is unknown or a value cannot work
    #[arg(long)]
    pub(crate) check_config: bool,

    /// Keep store, identity and proofs here [default: /var/lib/tractd as root, else ~/.local/state/tractd]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,

    /// Listen here [default: $TRACTD_SOCKET, else /run/tractd/tractd.sock as root, else
    /// $XDG_RUNTIME_DIR/tractd/tractd.sock]
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,

    /// Serve the unsigned models in this folder, NAME/VERSION/model.onnx [default: models/ in the state folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) models: Option<PathBuf>,

    /// Try the model in this folder within limits, and print what was measured: what tractd starts itself for
    #[arg(long, value_name = "DIR", hide = true)]
    pub(crate) prove: Option<PathBuf>,

    #[arg(long, value_name = "BYTES", hide = true, requires = "prove")]
    pub(crate) prove_address_space: Option<u64>,

    #[arg(long, value_name = "MS", hide = true, requires = "prove")]
    pub(crate) prove_wall_ms: Option<u64>,
}

const EXAMPLES: &str = "\
Examples:
  tractd --models ./models             serve a folder of models
  tractd --check-config                what would apply, and where it is wrong
  tractctl infer digits --image 7.png  ask it

Signals: SIGTERM and SIGINT finish what runs and end; SIGHUP reads configuration and models again and asks the
registry for updates.
Exit status: 0 ended as asked, 1 failed while running, 2 wrong usage or configuration.";

impl Arguments {
    /// What was said here wins over the file.
    pub(crate) fn apply(&self, config: &mut Config) {
        let set = |place: &mut Option<PathBuf>, value: &Option<PathBuf>| {
            if value.is_some() {
                place.clone_from(value);
            }
        };
        set(&mut config.state_dir, &self.state);
        set(&mut config.socket.path, &self.socket);
        set(&mut config.models_dir, &self.models);
    }
}
