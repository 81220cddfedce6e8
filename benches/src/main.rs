//! `ringpilot-bench`: argv only; each scenario is a module.

mod compare;
mod daemon;
mod elasticsearch;
mod faults;
mod floor;
mod gate;
mod hostile;
mod kafka;
mod load;
mod measure;
mod outputs;
mod pod;
mod quiet;
mod receiver;
mod ring;
mod rotate;
mod shim;
mod simulate;
mod throughput;

use clap::{Parser, Subcommand};

/// Compares, measures and breaks Ringpilot.
#[derive(Debug, Parser)]
#[command(
    name = "ringpilot-bench",
    version,
    after_help = "Example: ringpilot-bench floor --to null,file,bulk --lines 5000000"
)]
struct Arguments {
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Debug, Subcommand)]
enum Scenario {
    /// What the work costs one thread with no framework at all: the bar for everything else
    Floor(floor::Floor),
    /// What the daemon costs for the same work
    Throughput(throughput::Throughput),
    /// Kills the daemon, or rotates its files under it, and counts every line
    Faults(faults::Faults),
    /// Several outputs at once: one that is down or slow, quotas, memory
    Outputs(outputs::Outputs),
    /// What a record to Kafka costs, the daemon beside librdkafka's own producer
    Kafka(kafka::Kafka),
    /// What the daemon costs where little happens, and how late a line arrives
    Quiet(quiet::Quiet),
    /// What the ring costs by itself, beside a unix socket, with the bar of each figure
    Ring(ring::Ring),
    /// The same pods, collected as node, sidecar, hybrid and by unix socket
    Compare(compare::Compare),
    #[command(
        hide = true,
        about = "An end of the comparison's unix socket, in a pod"
    )]
    Forwarder(compare::socket::Forwarder),
    #[command(
        hide = true,
        about = "An end of the comparison's unix socket, on the node"
    )]
    Collector(compare::socket::Collector),
    /// Breaks the ring's rules, as a hostile pod would; run by deploy/e2e/hostile
    Hostile(hostile::Hostile),
    /// Writes numbered lines
    Load(load::ToFile),
    /// Plays an Elasticsearch that takes everything, and checks what it gets
    Receiver(receiver::Receiver),
    /// Histories of a whole simulated node, from seeds; with `--mutants`, whether they find what is broken on purpose
    Simulate(simulate::Simulate),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().scenario {
        Scenario::Floor(floor) => floor.run(),
        Scenario::Throughput(throughput) => throughput.run(),
        Scenario::Faults(faults) => faults.run(),
        Scenario::Outputs(outputs) => outputs.run(),
        Scenario::Kafka(kafka) => kafka.run(),
        Scenario::Quiet(quiet) => quiet.run(),
        Scenario::Ring(ring) => ring.run(),
        Scenario::Compare(compare) => compare.run(),
        Scenario::Forwarder(forwarder) => forwarder.run(),
        Scenario::Collector(collector) => collector.run(),
        Scenario::Hostile(hostile) => hostile.run(),
        Scenario::Load(load) => load.run(),
        Scenario::Receiver(receiver) => receiver.run(),
        Scenario::Simulate(simulate) => simulate.run(),
    }
}
