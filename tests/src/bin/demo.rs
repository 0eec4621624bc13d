//! `scripts/demo`: the whole path on one machine, from an empty registry to answered digits, with everything checked.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use comfy_table::{Cell, CellAlignment, Table, presets};
use tractd_ctl::exchange::{Input, Reply};
use tractd_tests::broker::Broker;
use tractd_tests::daemon::{Daemon, Home, request};
use tractd_tests::digits::{self, Expected, Sample};
use tractd_tests::mqtt::Client;
use tractd_tests::process::wait_for;
use tractd_tests::registry::Registry;
use tractd_tests::{binary, root};

const NODE: &str = "demo";
/// Longest wait for one reply.
const PATIENCE: Duration = Duration::from_secs(30);
/// Requests each client sends around the swap, at least.
const AROUND_SWAP: usize = 150;
/// Clients that keep asking while version 2 is swapped in.
const CLIENTS: usize = 2;

/// Shows tractd at work on this machine.
#[derive(Parser)]
struct Arguments {
    /// End after the table; status 1 when any reply was wrong or missing
    #[arg(long)]
    once: bool,
}

/// One line of the table.
struct Row {
    input: String,
    road: &'static str,
    reply: Reply,
    took: Duration,
    wrong: Option<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Before any thread is started, so that none of them takes the signal instead.
    let interrupted = interrupts();
    let started = Instant::now();
    let say = |text: &str| println!("{:5.1} s  {text}", started.elapsed().as_secs_f32());

    let broker = Broker::start();
    let kind = if broker.speaks_v4() { "mosquitto" } else { "in-process broker, MQTT 5 only" };
    say(&format!("broker: {kind} at 127.0.0.1:{}", broker.port()));
    let registry = Registry::new();
    say(&format!("registry: made, its keys encrypted, served at {}", registry.url()));
    registry.add(&digits::dir(1));
    registry.publish("digits@1");
    say("registry: digits 1 packed, signed and published");
    let home = Home::new().with_config(&format!(
        "[mqtt]\nurl = \"mqtt://127.0.0.1:{}\"\n[update]\nenabled = false\n",
        broker.port()
    ));
    registry.provision(&home, NODE);
    let daemon = home.start();
    say("device: provisioned with the registry's root; tractd is up");
    daemon.update_to("digits", 1);
    say("device: digits 1 pulled, verified, self-tested and serving");

    let expected = [Expected::of(&digits::dir(1)), Expected::of(&digits::dir(2))];
    let samples = digits::samples();
    let mut rows = ask_all(&daemon, &broker, &samples, &expected);
    say(&format!("asked: {} digits on every road", samples.len()));

    registry.add(&digits::dir(2));
    registry.publish("digits@2");
    let swap = swap_under_load(&daemon, &samples, &expected);
    say("device: digits 2 swapped in under running requests");
    rows.extend(ask_all(&daemon, &broker, &samples, &expected));

    println!("\n{}", table(&rows));
    println!("Each digit took every road; one of them is shown. {} replies in all.\n", rows.len());
    let wrong: Vec<&String> = rows.iter().filter_map(|row| row.wrong.as_ref()).chain(&swap.wrong).collect();
    println!(
        "Under the swap {} requests ran: {} answered by version 1, {} by version 2, {} lost.",
        swap.sent,
        swap.answered[0],
        swap.answered[1],
        swap.sent - swap.answered.iter().sum::<usize>()
    );
    println!(
        "Every reply was held against what ONNX Runtime computed for the digest it names: {}.",
        if wrong.is_empty() { "all right".to_owned() } else { format!("{} WRONG", wrong.len()) }
    );
    wrong.iter().for_each(|why| println!("  {why}"));
    let well = wrong.is_empty() && swap.sent == swap.answered.iter().sum::<usize>() && swap.answered[1] > 0;
    if !arguments.once && well {
        println!("{}", hints(&home, &registry, &broker));
        while !interrupted.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(50));
        }
        println!("\nEnding everything.");
    }
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Each digit over the socket, and over MQTT 5 and (with mosquitto) 3.1.1.
fn ask_all(daemon: &Daemon<'_>, broker: &Broker, samples: &[Sample], expected: &[Expected]) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut socket = daemon.connect();
    let mut mqtt5 = Client::connect(broker.port(), 5, "tractd/v1/_res/{me}/#");
    let mut mqtt4 = broker.speaks_v4().then(|| Client::connect(broker.port(), 4, "tractd/v1/_res/{me}/#"));
    wait_until_connected(&mut mqtt5, &samples[0]);
    for sample in samples {
        let ask = request("digits", Input::Media(sample.png.clone()));
        let started = Instant::now();
        let reply = socket.infer(&ask).expect("the daemon replies");
        rows.push(row(sample, "socket", reply, started.elapsed(), expected));
        let frame = ask.frame(1).expect("a digit fits a frame");
        for (road, client) in [("MQTT 5", Some(&mut mqtt5)), ("MQTT 3.1.1", mqtt4.as_mut())] {
            let Some(client) = client else { continue };
            let started = Instant::now();
            let reply = through(client, frame.clone(), PATIENCE).expect("the daemon replies");
            rows.push(row(sample, road, reply, started.elapsed(), expected));
        }
    }
    rows
}

/// The daemon connects to the broker in its own time; a request before that is nobody's.
fn wait_until_connected(client: &mut Client, sample: &Sample) {
    let frame = request("digits", Input::Media(sample.png.clone())).frame(0).expect("a digit fits a frame");
    wait_for("the daemon on the broker", PATIENCE, || {
        through(client, frame.clone(), Duration::from_millis(300)).map(drop)
    });
    while client.next(Duration::from_millis(50)).is_some() {}
}

fn through(client: &mut Client, frame: Vec<u8>, patience: Duration) -> Option<Reply> {
    let topic = format!("tractd/v1/{NODE}/req/digits/postcard/{}", client.name);
    let reply_topic = format!("tractd/v1/_res/{}", client.name);
    client.publish(&topic, frame, Some((&reply_topic, b"demo")));
    client.next(patience).map(|message| Reply::from_frame(&message.payload).expect("a reply is a frame"))
}

fn row(sample: &Sample, road: &'static str, reply: Reply, took: Duration, expected: &[Expected]) -> Row {
    let wrong = check(sample, &reply, expected).err();
    Row { input: format!("{}.png", sample.name), road, reply, took, wrong }
}

/// The reply against the golden outputs of the version whose digest it names.
fn check(sample: &Sample, reply: &Reply, expected: &[Expected]) -> Result<usize, String> {
    let which = expected.iter().position(|expected| expected.digest == reply.digest).ok_or_else(|| {
        format!("{}: {} ({}), by no published version", sample.name, reply.status, reply.detail)
    })?;
    expected[which].check(&sample.name, reply)?;
    match reply.classes.first() {
        Some(class) if class.index == sample.class => Ok(which),
        other => Err(format!("{}: answered {other:?}", sample.name)),
    }
}

/// What happened to the requests that ran while version 2 came.
#[derive(Default)]
struct Swap {
    sent: usize,
    answered: [usize; 2],
    wrong: Vec<String>,
}

fn swap_under_load(daemon: &Daemon<'_>, samples: &[Sample], expected: &[Expected]) -> Swap {
    let over = AtomicBool::new(false);
    let sent: Vec<AtomicUsize> = (0..CLIENTS).map(|_| AtomicUsize::new(0)).collect();
    std::thread::scope(|scope| {
        let clients: Vec<_> = sent
            .iter()
            .map(|sent| {
                let over = &over;
                scope.spawn(move || {
                    let mut swap = Swap::default();
                    let mut socket = daemon.connect();
                    for sample in samples.iter().cycle() {
                        if over.load(Ordering::Relaxed) {
                            break;
                        }
                        swap.sent += 1;
                        sent.store(swap.sent, Ordering::Relaxed);
                        match socket.infer(&request("digits", Input::Media(sample.png.clone()))) {
                            Ok(reply) => match check(sample, &reply, expected) {
                                Ok(which) => swap.answered[which] += 1,
                                Err(why) => swap.wrong.push(why),
                            },
                            Err(error) => {
                                swap.wrong.push(error.to_string());
                                break;
                            }
                        }
                    }
                    swap
                })
            })
            .collect();
        let reach = |goal: usize| {
            let until = Instant::now() + PATIENCE;
            while sent.iter().any(|sent| sent.load(Ordering::Relaxed) < goal) && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        let ends = Ends(&over);
        reach(AROUND_SWAP);
        daemon.update_to("digits", 2);
        let reached = sent.iter().map(|sent| sent.load(Ordering::Relaxed)).max().unwrap_or_default();
        reach(reached + AROUND_SWAP);
        drop(ends);
        clients.into_iter().fold(Swap::default(), |mut all, client| {
            let one = client.join().expect("a client does not panic");
            all.sent += one.sent;
            (0..2).for_each(|version| all.answered[version] += one.answered[version]);
            all.wrong.extend(one.wrong);
            all
        })
    })
}

/// Lets the clients end, also when something fails meanwhile: a scope waits for its threads.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header([
        "INPUT",
        "ROAD",
        "ANSWER",
        "CONFIDENCE",
        "VERSION",
        "QUEUE",
        "PRE",
        "INFER",
        "POST",
        "TOTAL",
        "",
    ]);
    let roads = rows.iter().take_while(|row| row.input == rows[0].input).count().max(1);
    // The first digit's first road, the second one's second, and whatever was wrong.
    let shown = |at: usize| at % roads == (at / roads) % roads || rows[at].wrong.is_some();
    for row in (0..rows.len()).filter(|&at| shown(at)).map(|at| &rows[at]) {
        let us = |us: u32| Cell::new(format!("{us} µs")).set_alignment(CellAlignment::Right);
        let best = row.reply.classes.first();
        let total = Cell::new(format!("{} µs", row.took.as_micros())).set_alignment(CellAlignment::Right);
        let stages = row.reply.stages_us;
        table.add_row([
            Cell::new(&row.input),
            Cell::new(row.road),
            Cell::new(best.map_or("–", |class| &class.label)),
            Cell::new(best.map_or_else(String::new, |class| format!("{:.1} %", class.score * 100.0)))
                .set_alignment(CellAlignment::Right),
            Cell::new(format!("{} {}", row.reply.model, row.reply.version)),
            us(stages.queue),
            us(stages.pre),
            us(stages.infer),
            us(stages.post),
            total,
            match row.wrong {
                None => Cell::new("✓"),
                Some(_) => Cell::new("✗ wrong"),
            },
        ]);
    }
    table
}

/// Commands for a second terminal, with the paths of this run.
fn hints(home: &Home, registry: &Registry, broker: &Broker) -> String {
    let tool = binary("tractctl").display().to_string();
    let samples = root().join("models/digits/samples");
    let picture = |name: &str| samples.join(name).display().to_string();
    let port = broker.port();
    let mut text = format!(
        "\nEverything stays up until Ctrl-C. In a second terminal:\n\n\
         export TRACTD_SOCKET={socket}\n\
         {tool} models\n\
         {tool} status\n\
         {tool} infer digits --image {seven}\n\
         {tool} infer digits --image {three} --at mqtt://127.0.0.1:{port}/{NODE}\n\
         python3 -c 'import sys; sys.path.insert(0, \"{python}\"); import tractd; \
         print(tractd.Client().infer(\"digits\", image=\"{nine}\").classes[0])'\n",
        socket = home.socket().display(),
        seven = picture("7-0027.png"),
        three = picture("3-0089.png"),
        nine = picture("9-0037.png"),
        python = root().join("clients/python").display(),
    );
    if broker.speaks_v4() {
        text.push_str(&format!(
            "mosquitto_sub -p {port} -t 'tractd/v1/_res/shell' -C 1 & \
             sleep 1; mosquitto_pub -p {port} -t tractd/v1/{NODE}/req/digits/raw/shell -f {}\n",
            picture("5-0204.png")
        ));
    }
    text.push_str(&format!(
        "\nThe registry is {} (keys beside it, passphrase \"{}\"), the device's state {}.\n",
        registry.path().display(),
        tractd_tests::registry::PASSPHRASE,
        home.state().display()
    ));
    text
}

/// A flag that Ctrl-C or SIGTERM sets, instead of ending us before our children are ended.
fn interrupts() -> &'static AtomicBool {
    static INTERRUPTED: AtomicBool = AtomicBool::new(false);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
    std::thread::spawn(move || {
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let mut interrupt = signal(SignalKind::interrupt()).expect("SIGINT can be handled");
            let mut terminate = signal(SignalKind::terminate()).expect("SIGTERM can be handled");
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            INTERRUPTED.store(true, Ordering::Relaxed);
        });
    });
    &INTERRUPTED
}
