//! The oracle, held to the files.

use std::collections::BTreeMap;

use super::*;
use crate::sim::{PowerLoss, Survival};

/// What is told of the lines, against the files themselves.
fn assert_true(workload: &Workload, seed: u64) {
    let present = workload.present().expect("the folder is there");
    let mut seen = vec![0_u32; workload.lines.len()];
    let names: BTreeMap<_, usize> = workload
        .lines
        .iter()
        .enumerate()
        .map(|(at, line)| (Workload::name_of(&line.text), at))
        .collect();
    for text in present.values().flatten() {
        if let Some(name) = Workload::name_of(text)
            && let Some(line) = names.get(&Some(name))
            && workload.lines[*line].text == *text
        {
            seen[*line] += 1;
        }
    }
    for (at, line) in workload.lines.iter().enumerate() {
        let is_there = line.is_readable_at(workload.moment);
        assert!(
            line.torn || (seen[at] > 0) == is_there,
            "seed {seed}: {line:?} in {} files, {:?}",
            seen[at],
            workload.named.keys()
        );
    }
}

#[test]
fn what_is_told_of_a_line_is_what_is_on_the_disk() {
    for seed in 0..150 {
        let mut rng = Rng::new(seed);
        let machine = Machine::new(seed);
        let mut workload = Workload::new(&machine, rng.fork());
        for log in 0..rng.between(1, 3) {
            let habits = Habits::any(&mut rng);
            let path = format!("/logs/{log}/app.log");
            workload.begin(path, habits).expect("nothing fails");
        }
        for step in 0..120 {
            workload.turn().expect("nothing fails");
            if rng.chance(0.02) {
                let workloads = Some(*rng.pick(&[Survival::InOrder, Survival::AnyOrder]));
                let loss = PowerLoss {
                    workloads,
                    ..PowerLoss::default()
                };
                machine.power_loss(&mut rng, loss);
                workload.start_again().expect("nothing fails");
            }
            if step % 10 == 0 {
                assert_true(&workload, seed);
            }
        }
        assert_true(&workload, seed);
    }
}

#[test]
fn each_rotation_leaves_the_files_that_it_is_known_for() {
    let names = |rotation, keeps: &[u64]| {
        let machine = Machine::new(1);
        let mut workload = Workload::new(&machine, Rng::new(1));
        let habits = Habits {
            rotation,
            keep: 2,
            ..Habits::default()
        };
        let log = workload.begin("/logs/app.log", habits).expect("fresh");
        for _ in 0..4 {
            workload.write(log, 1).expect("nothing fails");
            workload.rotate(log).expect("nothing fails");
        }
        workload.write(log, 1).expect("nothing fails");
        let kept = workload.lines.iter().filter(|line| line.gone.is_none());
        let kept: Vec<u64> = kept
            .filter_map(|line| Some(Workload::name_of(&line.text)?.1))
            .collect();
        assert_eq!(kept, keeps, "{rotation:?}");
        let mut names = machine.names("/logs").expect("it is there");
        names.sort();
        names
    };
    assert_eq!(
        names(Rotation::RenameChain, &[2, 3, 4]),
        ["app.log", "app.log.1", "app.log.2"]
    );
    assert_eq!(
        names(Rotation::CopyTruncate, &[2, 3, 4]),
        ["app.log", "app.log.1", "app.log.2"]
    );
    assert_eq!(names(Rotation::RenameToTime, &[2, 3, 4]).len(), 3);
    assert_eq!(names(Rotation::DeleteCreate, &[4]), ["app.log"]);
    assert_eq!(names(Rotation::Truncate, &[4]), ["app.log"]);
    assert_eq!(
        names(Rotation::SymlinkSwap, &[2, 3, 4]),
        ["app-2.log", "app-3.log", "app-4.log", "app.log"]
    );
    assert_eq!(
        names(Rotation::NextNumber, &[2, 3, 4]),
        ["2.log", "3.log", "4.log"]
    );
}
