//! The publisher's verbs across machines: keys made elsewhere, changes staged and signed, rollouts steered.

use tractd_tests::digits;
use tractd_tests::process::{Said, tractctl};
use tractd_tests::registry::Registry;

#[test]
fn a_team_signs_what_ci_staged_and_a_person_steers_the_rollout() {
    let registry = Registry::new();
    let path = registry.path().display().to_string();
    let on = |words: &[&str]| -> Said { tractctl(&[words, &["--registry", &path]].concat()) };

    let homes = tempfile::tempdir().unwrap();
    let home = |name: &str| homes.path().join(name).display().to_string();
    let public = |name: &str| format!("{}/team-audio-{name}.pub.json", home(name));
    for name in ["ann", "bea"] {
        let key = format!("team-audio-{name}");
        let folder = home(name);
        let made = ["registry", "key", "new", &key, "--role", "team-audio", "--keys", &folder];
        tractctl(&[&made[..], &["--work-factor", "10"]].concat()).ok();
    }
    let (ann, bea) = (public("ann"), public("bea"));
    let team = on(&["registry", "delegate", "audio", "--key", &ann, "--key", &bea, "--threshold", "2"]);
    assert!(team.err.contains("staged/1.team-audio.json waits for 2 signatures"), "{}", team.err);

    let sign = |file: &str, name: &str| {
        let file = registry.path().join("staged").join(file).display().to_string();
        tractctl(&["registry", "sign", &file, "--keys", &home(name)])
    };
    for name in ["ann", "bea"] {
        let said = sign("1.team-audio.json", name).ok();
        assert!(said.contains(&format!("signed by team-audio-{name}")), "{said}");
    }
    let taken = on(&["registry", "refresh"]).ok();
    assert!(taken.contains("taken in: team-audio"), "{taken}");

    let packed = registry.pack(&digits::dir(1)).display().to_string();
    let staged = on(&["registry", "add", &packed, "--team", "audio", "--stage"]).ok();
    assert!(staged.starts_with("digits 1 staged for team audio"), "{staged}");
    sign("2.team-audio.json", "ann").ok();
    let none = on(&["registry", "refresh"]);
    assert!(none.err.contains("2.team-audio.json waits for 1 signatures"), "{}", none.err);
    sign("2.team-audio.json", "bea").ok();
    on(&["registry", "refresh"]).ok();

    on(&["rollout", "start", "digits@1", "--percent", "5", "--group", "lab"]).ok();
    on(&["rollout", "pause", "digits", "--group", "lab"]).ok();
    let status = on(&["rollout", "status"]).ok();
    assert!(status.contains("paused") && status.contains("5 %"), "{status}");
    let waves = ["digits@1", "--waves", "5,25,100", "--window", "22:00-04:00", "--group", "lab"];
    let said = on(&[&["rollout", "start"][..], &waves].concat()).ok();
    assert!(said.starts_with("digits 1 goes to 5 % of group lab"), "{said}");
    let said = on(&["rollout", "next", "digits", "--group", "lab"]).ok();
    assert!(said.ends_with("is active at 25 %\n"), "{said}");
    let status = on(&["rollout", "status"]).ok();
    let row: Vec<&str> = status.lines().nth(1).unwrap().split_whitespace().collect();
    let expected = ["lab", "digits", "1", "active", "25", "%", "100", "%", "22:00-04:00", "UTC"];
    assert_eq!(row[..10], expected, "{status}");
    let falling = on(&["rollout", "start", "digits@1", "--waves", "25,5", "--group", "lab"]);
    assert!(falling.err.contains("must be rising shares"), "{}", falling.err);
    on(&["registry", "rotate", "timestamp"]).ok();
    on(&["registry", "revoke", "root-3"]).ok();
    let walked = tractctl(&["registry", "verify", &path]).ok();
    assert!(walked.contains(" files, "), "{walked}");

    let timestamp = registry.path().join("metadata/timestamp.json");
    let text = std::fs::read_to_string(&timestamp).unwrap();
    std::fs::write(&timestamp, text.replace("\"version\": ", "\"version\": 1")).unwrap();
    let damaged = tractctl(&["registry", "verify", &path]);
    assert_eq!(damaged.code, Some(1));
    assert!(damaged.out.contains("timestamp.json: carries 0 valid signatures"), "{}", damaged.out);
}
