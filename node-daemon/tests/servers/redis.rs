//! Redis 7: lists and channels, passwords, a full memory, and a kill in the middle.

use redis::AsyncCommands;
use ringpilot::settings::OutputSettings;
use ringpilot::ship::redis::Redis;
use ringpilot::ship::{Guarantee, Load, Output, Verdict};

use crate::deliver::deliver;
use crate::records::{count, loads, object};
use crate::started::{Counted, Started, say};

fn output(server: &Started, own: &str) -> Redis {
    let own = format!("{{host: 127.0.0.1, port: {}, {own}}}", server.port);
    let own = serde_yaml_ng::from_str(&own).unwrap();
    Redis::new(&OutputSettings::of("redis", own), 1 << 20).unwrap()
}

async fn client(server: &Started, login: &str) -> redis::aio::MultiplexedConnection {
    let url = format!("redis://{login}127.0.0.1:{}/", server.port);
    let client = redis::Client::open(url).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

fn batches(target: &str, numbers: std::ops::Range<usize>) -> Vec<Load> {
    let codec = ringpilot::batch::Codec::Json;
    loads(target, &codec, numbers, object, |_| None)
}

/// The numbers of a list's records, in its order.
async fn list(client: &mut redis::aio::MultiplexedConnection, key: &str) -> Vec<usize> {
    let records: Vec<String> = client.lrange(key, 0, -1).await.unwrap();
    let number = |record: &String| {
        let read: serde_json::Value = serde_json::from_str(record).unwrap();
        let number = usize::try_from(read["n"].as_u64().unwrap()).unwrap();
        assert_eq!(*record, object(number));
        number
    };
    records.iter().map(number).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_holds_every_record_as_it_was_and_in_order() {
    let server = Started::new("redis", 1, &[]);
    let redis = output(&server, "db: 2, key: 'logs:{target}'");
    redis.probe().await.unwrap();
    for load in batches("web", 0..count()) {
        let verdict = redis.attempt(&load).await;
        assert_eq!(verdict, Verdict::All(ringpilot::ship::Fate::Delivered));
    }
    let mut client = client(&server, "").await;
    let _: () = redis::cmd("SELECT")
        .arg(2)
        .query_async(&mut client)
        .await
        .unwrap();
    let length: usize = client.llen("logs:web").await.unwrap();
    assert_eq!(length, count());
    assert!(
        list(&mut client, "logs:web")
            .await
            .into_iter()
            .eq(0..count())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_in_the_middle_loses_nothing() {
    let mut server = Started::new("redis", 1, &[]);
    let redis = output(&server, "db: 0");
    let counted = Counted::new(&redis);
    let loads = batches("web", 0..count());
    let middle = loads.len() / 2;
    let (tally, ()) = tokio::join!(deliver(&counted, loads), async {
        counted.reached(middle).await;
        tokio::task::block_in_place(|| {
            server.kill();
            server.start();
        });
    });
    assert_eq!(tally.delivered, count());
    assert!(tally.failed + tally.again > 0, "the kill was not noticed");
    let mut there = list(&mut client(&server, "").await, "web").await;
    let twice = there.len() - count();
    there.sort_unstable();
    there.dedup();
    assert!(there.into_iter().eq(0..count()));
    say(format_args!(
        "redis: {} records, {twice} of them twice",
        count()
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_gives_to_whoever_listens_and_promises_nothing() {
    let server = Started::new("redis", 1, &[]);
    let redis = output(&server, "datatype: channel");
    assert_eq!(redis.guarantee(), Guarantee::NotAcknowledged);
    let url = format!("redis://127.0.0.1:{}/", server.port);
    let client = redis::Client::open(url).unwrap();
    let mut listener = client.get_async_pubsub().await.unwrap();
    listener.subscribe("web").await.unwrap();
    let mut heard = listener.into_on_message();
    let (tally, ()) = tokio::join!(deliver(&redis, batches("web", 0..1_000)), async {
        for number in 0..1_000 {
            let message = futures_util::StreamExt::next(&mut heard).await.unwrap();
            assert_eq!(message.get_payload::<String>().unwrap(), object(number));
        }
    });
    assert_eq!(tally.delivered, 1_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_a_full_memory_and_a_key_of_another_kind_are_told_and_waited_out() {
    let server = Started::new("redis", 1, &["requirepass=hunter2"]);
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("password");
    std::fs::write(&secret, "hunter1\n").unwrap();
    let own = format!("password: {{file: {}}}", secret.display());
    let redis = output(&server, &own);
    let one = batches("web", 0..10).remove(0);
    let Verdict::Failed { cause } = redis.attempt(&one).await else {
        panic!("a wrong password is accepted");
    };
    assert!(cause.contains("assword"), "{cause}");
    assert!(redis.probe().await.is_err());
    // A changed secret counts with the next attempt.
    std::fs::write(&secret, "hunter2\n").unwrap();
    redis.probe().await.unwrap();

    let mut client = client(&server, ":hunter2@").await;
    let _: () = client.set("web", "no list").await.unwrap();
    let said = format!("{:?}", redis.attempt(&one).await);
    assert!(said.contains("key `web` holds no list"), "{said}");
    let _: () = client.del("web").await.unwrap();

    let config = |value: &'static str| {
        let mut command = redis::cmd("CONFIG");
        command.arg("SET").arg("maxmemory").arg(value);
        command
    };
    let _: () = config("1").query_async(&mut client).await.unwrap();
    let said = format!("{:?}", redis.attempt(&one).await);
    assert!(said.contains("memory is full"), "{said}");
    let _: () = config("0").query_async(&mut client).await.unwrap();
    let tally = deliver(&redis, vec![one]).await;
    assert_eq!((tally.delivered, tally.failed, tally.again), (10, 0, 0));
    assert_eq!(list(&mut client, "web").await.len(), 10);
}
