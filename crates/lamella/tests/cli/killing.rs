//! A killed job leaves nothing that looks whole, and the same command goes on to the same bytes.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::{at, command, done, model, scratch};

/// Kills `moments` runs at moments spread over a run's duration; after each, the same command must finish to the
/// same bytes. Says how many runs were killed and how many of those left finished work behind.
fn kill(arguments: &[&str], moments: u32) -> (u32, u32) {
    let directory = scratch();
    let undisturbed = at(&directory, "undisturbed.lam");
    let started = Instant::now();
    done(&[arguments, &["-o", &undisturbed]].concat());
    let duration = started.elapsed();
    let expected = std::fs::read(&undisturbed).unwrap();
    let (mut killed, mut with_work) = (0, 0);
    for moment in 0..moments {
        let output = at(&directory, &format!("{moment}.lam"));
        let whole = [arguments, &["-o", &output]].concat();
        let mut child = command(&whole).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // From early to a little after the end; late moments are where layers are spooled and assembled.
        std::thread::sleep(
            duration.mul_f64(f64::from(moment + 1) / f64::from(moments)).max(Duration::from_millis(1)),
        );
        child.kill().unwrap();
        let ended = child.wait().unwrap();
        if ended.success() {
            assert!(
                std::fs::read(&output).unwrap() == expected,
                "moment {moment}: finished with other bytes"
            );
            continue;
        }
        killed += 1;
        if Path::new(&output).exists() {
            assert!(
                std::fs::read(&output).unwrap() == expected,
                "moment {moment}: a half file has the output's name"
            );
            // Killed after the file took its name and before the spool went: the next run cleans up.
            done(&[&whole[..], &["--overwrite"]].concat());
        } else {
            let part = format!("{output}.part");
            with_work += u32::from(std::fs::read_dir(part).is_ok_and(|entries| entries.count() > 1));
            done(&whole);
        }
        assert!(
            std::fs::read(&output).unwrap() == expected,
            "moment {moment}: the resumed file has other bytes"
        );
        assert!(!Path::new(&format!("{output}.part")).exists(), "moment {moment}: the spool is left");
    }
    (killed, with_work)
}

#[test]
fn twenty_killed_jobs_resume_to_the_same_bytes() {
    let quick = ["--tokens", "2048", "--allocate", "uniform", "--quiet"];
    let recipe =
        ["compress", model(), "--recipe", "house(trellis=0, passes=1)", "--size", "12%", "--sequential"];
    let (killed, with_work) = kill(&[&recipe[..], &quick].concat(), 10);
    println!("house, block by block: {killed} of 10 killed, {with_work} of them with finished work");
    let grouped = ["compress", model(), "--recipe", "gptq(bits=4, group_size=32)"];
    let (also_killed, also_with_work) = kill(&[&grouped[..], &quick].concat(), 10);
    println!("gptq: {also_killed} of 10 killed, {also_with_work} of them with finished work");
    assert!(killed + also_killed >= 5, "hardly a run was killed: the moments are badly chosen");
}
