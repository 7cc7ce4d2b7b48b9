//! The attacks that a member of the swarm makes: on the control stream, with chunk streams, and by
//! what it does not do.
//!
//! Each is a loop over one connection that ends when it is thrown out; [`keep_up`] then comes again
//! under a new key. Errors end a connection and nothing else: being thrown out is what should happen.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, SendStream, TransportConfig, VarInt};
use rootswarm_image::ChunkIndex;
use rootswarm_swarm::{ChunkRun, Have, Message, Role, encode_message};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::idle::{self, Hold};
use super::member::{Member, Outlaw, OutlawError, Prey, framed, hear};
use super::{Attack, Scene, Target, flood, version};
use crate::swarm::HTTP_PORT;

type Result<T> = std::result::Result<T, OutlawError>;

/// How a peer answers a request for a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answering {
    /// With random bytes.
    Garbage,
    /// With the bytes of a chunk of another image.
    OtherImage,
    /// Not at all.
    Nothing,
    /// With a byte a second.
    Trickle,
    /// With bytes that go on after the chunk's end.
    Endless,
    /// With its first half.
    Half,
    /// With as many streams as there may be, each of which lacks its last byte.
    Everywhere,
}

/// Between one connection and the next.
const PAUSE: Duration = Duration::from_millis(100);
/// How long one identity goes on before it is changed for another.
const ROUND: Duration = Duration::from_secs(20);
/// Between two offers that nobody takes.
const OFFER_EVERY: Duration = Duration::from_millis(20);
/// How often nodes that have come meanwhile are looked for.
const RESCAN: Duration = Duration::from_millis(500);
/// What is read of one chunk's stream.
const CHUNK_BYTES_MAX: usize = 16 << 20;
/// How often the seed is asked for nodes while there are none yet.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// Messages written in one go.
const BATCH: u32 = 64;

/// Attacks until the task is dropped.
pub(crate) async fn keep_up(scene: Arc<Scene>) {
    match scene.attack {
        Attack::Handshakes => return flood::handshakes(&scene).await,
        Attack::Joins => return flood::joins(&scene).await,
        Attack::IdleJoins => return hold(&scene, Hold::Joins, scene.prey.seed, 9).await,
        Attack::IdleHttp => {
            let http = SocketAddr::new(scene.prey.seed.ip(), HTTP_PORT);
            return hold(&scene, Hold::Http, http, 49).await;
        }
        _ => {}
    }
    loop {
        // Thrown out, or not let in: that is the defence's business.
        let _ = round(&scene).await;
        sleep(PAUSE).await;
    }
}

/// Holds places from so many addresses of the loopback, on which everybody is allowed: two machines together
/// some more than there are. Who knocks without end where nothing is to be had is a flood, and other rows'.
async fn hold(scene: &Arc<Scene>, what: Hold, victim: SocketAddr, addresses: u8) {
    const EACH: usize = 32;
    let from: Vec<IpAddr> = (1..=addresses)
        .map(|host| IpAddr::from([127, 201, 0, host]))
        .collect();
    let counted = scene.clone();
    let fired = move || counted.fire();
    idle::hold(what, victim, &from, EACH, &fired).await;
}

/// One identity against each victim, until all have thrown it out or the round is over.
async fn round(scene: &Arc<Scene>) -> Result<()> {
    let outlaw = Arc::new(Outlaw::join(scene.from, &scene.prey, None).await?);
    let mut struck = std::collections::BTreeSet::new();
    let mut attacks = JoinSet::new();
    let end = Instant::now() + ROUND;
    loop {
        for victim in scene.victims(&outlaw).await? {
            if struck.insert(victim) {
                let (scene, outlaw) = (scene.clone(), outlaw.clone());
                attacks.spawn(async move {
                    // An error is the end of its connection: it was thrown out.
                    let _ = timeout_at(end, strike(&scene, &outlaw, victim)).await;
                });
            }
        }
        // Those that come later are attacked too.
        let _ = timeout(RESCAN, async {
            while attacks.join_next().await.is_some() {}
        })
        .await;
        if attacks.is_empty() || Instant::now() >= end {
            return Ok(());
        }
    }
}

/// Asks the seed which nodes there are, as any node may.
pub(crate) async fn ask_for_nodes(outlaw: &Outlaw, prey: &Prey) -> Result<Vec<SocketAddr>> {
    let mut member = outlaw
        .meet(prey.seed, Role::Seed, Have::Nothing, None)
        .await?;
    // It is sent chunks like any node. Unread they would fill the connection's window, and no answer
    // would come through any more.
    let connection = member.connection.clone();
    let mut reading = JoinSet::new();
    reading.spawn(async move {
        while let Ok(mut stream) = connection.accept_uni().await {
            let _ = stream.read_to_end(CHUNK_BYTES_MAX).await;
        }
    });
    let mut victims = Vec::new();
    let listen = async {
        loop {
            member
                .say(&framed(&encode_message(&Message::WantPeers)))
                .await?;
            while let Ok(heard) = timeout(ASK_EVERY, hear(&mut member.inbox)).await {
                if let Message::Peers(found) | Message::Dial(found) = heard? {
                    victims.extend(found.into_iter().map(|peer| peer.addr));
                    if !victims.is_empty() {
                        return Ok(());
                    }
                }
            }
        }
    };
    timeout(Duration::from_secs(10), listen)
        .await
        .map_err(|_| OutlawError::Other("the seed names nobody".to_owned()))??;
    victims.sort();
    victims.dedup();
    Ok(victims)
}

async fn strike(scene: &Scene, outlaw: &Outlaw, victim: SocketAddr) -> Result<()> {
    let role = scene.target.role();
    match scene.attack {
        Attack::Serve(how) => {
            let member = outlaw.meet(victim, role, Have::Everything, None).await?;
            serve(scene, outlaw, member, how).await
        }
        Attack::Unasked => unasked(scene, outlaw, victim).await,
        Attack::Streams => streams(scene, outlaw, victim).await,
        Attack::Pinned => pinned(scene, outlaw, victim).await,
        Attack::Oversize | Attack::Truncated | Attack::Random | Attack::Claims => {
            frames(scene, outlaw, victim).await
        }
        Attack::Offers | Attack::WantPeers | Attack::Haves | Attack::Requests => {
            chatter(scene, outlaw, victim).await
        }
        Attack::SlowReader => slow_reader(scene, outlaw, victim).await,
        Attack::Silent => silent(scene, outlaw, victim).await,
        Attack::Versions => {
            version::old_versions(scene.from, victim).await?;
            scene.fire();
            sleep(PAUSE).await;
            Ok(())
        }
        // They have no connection of a member.
        Attack::Handshakes | Attack::Joins | Attack::IdleJoins | Attack::IdleHttp => Ok(()),
    }
}

/// The bytes that a stranger's chunk has: never those of the image.
fn foreign(length: usize, index: ChunkIndex) -> Vec<u8> {
    let mut state = u64::from(index.0) ^ 0x9e37_79b9_7f4a_7c15;
    let next = |state: &mut u64| {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        state.to_le_bytes()
    };
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&next(&mut state));
    }
    bytes.truncate(length);
    bytes
}

async fn chunk_stream(
    connection: &Connection,
    index: ChunkIndex,
    length: u32,
) -> Result<SendStream> {
    let mut stream = connection
        .open_uni()
        .await
        .map_err(|error| OutlawError::Other(error.to_string()))?;
    let header = [index.0.to_be_bytes(), length.to_be_bytes()].concat();
    write(&mut stream, &header).await?;
    Ok(stream)
}

async fn write(stream: &mut SendStream, bytes: &[u8]) -> Result<()> {
    stream
        .write_all(bytes)
        .await
        .map_err(|error| OutlawError::Other(error.to_string()))
}

async fn serve(scene: &Scene, outlaw: &Outlaw, member: Member, how: Answering) -> Result<()> {
    let chunks = outlaw.manifest.geometry().chunk_count();
    let connection = member.connection.clone();
    let (mut control, mut answers) = (member.control, JoinSet::new());
    let (requests, mut requested) = mpsc::channel(256);
    let mut inbox = member.inbox;
    let mut listening = JoinSet::new();
    listening.spawn(async move {
        while let Ok(message) = hear(&mut inbox).await {
            if let Message::Request(index) = message
                && requests.send(index).await.is_err()
            {
                return;
            }
        }
    });
    for number in 0_u32.. {
        // What it claims to have it offers too: that is how it is asked.
        let offer = Message::Offer(vec![ChunkIndex(number % chunks)]);
        write(&mut control, &framed(&encode_message(&offer))).await?;
        let Ok(index) = timeout(OFFER_EVERY, requested.recv()).await else {
            continue;
        };
        let Some(index) = index else {
            return Ok(());
        };
        scene.fire();
        if how == Answering::Nothing {
            continue;
        }
        let length = outlaw.manifest.geometry().chunk_len(index);
        answers.spawn(answer(connection.clone(), index, length, how));
        while answers.try_join_next().is_some() {}
    }
    Ok(())
}

async fn answer(
    connection: Connection,
    index: ChunkIndex,
    length: u32,
    how: Answering,
) -> Result<()> {
    let mut bytes = foreign(length as usize, index);
    match how {
        Answering::Nothing => Ok(()),
        Answering::Garbage | Answering::OtherImage => {
            if how == Answering::OtherImage {
                // What another image has there: every chunk of it begins alike, and is in order.
                let block: Vec<u8> = bytes.iter().take(4096).copied().collect();
                bytes = block
                    .iter()
                    .copied()
                    .cycle()
                    .take(length as usize)
                    .collect();
            }
            let mut stream = chunk_stream(&connection, index, length).await?;
            write(&mut stream, &bytes).await?;
            let _ = stream.finish();
            let _ = stream.stopped().await;
            Ok(())
        }
        Answering::Trickle => {
            let mut stream = chunk_stream(&connection, index, length).await?;
            for byte in bytes {
                write(&mut stream, &[byte]).await?;
                sleep(Duration::from_secs(1)).await;
            }
            Ok(())
        }
        Answering::Endless => {
            let mut stream = chunk_stream(&connection, index, length).await?;
            loop {
                write(&mut stream, &bytes).await?;
            }
        }
        Answering::Half => {
            let mut stream = chunk_stream(&connection, index, length).await?;
            write(&mut stream, &bytes[..bytes.len() / 2]).await?;
            let _ = stream.finish();
            let _ = stream.stopped().await;
            Ok(())
        }
        Answering::Everywhere => {
            let mut open = JoinSet::new();
            // More than may be open at once: the rest wait for room.
            for _ in 0..256 {
                let (connection, bytes) = (connection.clone(), bytes.clone());
                open.spawn(async move {
                    let mut stream = chunk_stream(&connection, index, length).await?;
                    write(&mut stream, &bytes[..bytes.len() - 1]).await?;
                    sleep(ROUND).await;
                    Ok::<_, OutlawError>(())
                });
            }
            while open.join_next().await.is_some() {}
            Ok(())
        }
    }
}

/// Reads what the other side says and forgets it.
fn listen(member: Member) -> (Connection, SendStream, JoinSet<()>) {
    let Member {
        connection,
        control,
        mut inbox,
    } = member;
    let mut listening = JoinSet::new();
    listening.spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok(Some(_)) = inbox.read(&mut buffer).await {}
    });
    (connection, control, listening)
}

async fn unasked(scene: &Scene, outlaw: &Outlaw, victim: SocketAddr) -> Result<()> {
    let role = scene.target.role();
    let member = outlaw.meet(victim, role, Have::Everything, None).await?;
    let (connection, _control, _listening) = listen(member);
    let geometry = *outlaw.manifest.geometry();
    for index in (0..geometry.chunk_count()).cycle().map(ChunkIndex) {
        let length = geometry.chunk_len(index);
        scene.fire();
        // Where no stream may be opened at all, it goes on trying.
        let opening = chunk_stream(&connection, index, length);
        let Ok(stream) = timeout(RESCAN, opening).await else {
            continue;
        };
        let mut stream = stream?;
        // It may be stopped at any time: the next one goes out all the same.
        let _ = stream.write_all(&foreign(length as usize, index)).await;
        let _ = stream.finish();
    }
    Ok(())
}

async fn streams(scene: &Scene, outlaw: &Outlaw, victim: SocketAddr) -> Result<()> {
    let role = scene.target.role();
    let member = outlaw.meet(victim, role, Have::Everything, None).await?;
    let (connection, _control, _listening) = listen(member);
    let chunks = outlaw.manifest.geometry().chunk_count();
    let mut held = std::collections::VecDeque::new();
    for number in 0.. {
        let index = ChunkIndex(number % chunks);
        let length = outlaw.manifest.geometry().chunk_len(index);
        scene.fire();
        // As many as may be open, for as long as it may last; then the oldest makes room.
        match timeout(
            Duration::from_millis(50),
            chunk_stream(&connection, index, length),
        )
        .await
        {
            Ok(stream) => {
                let mut stream = stream?;
                let _ = stream.write_all(&[0]).await;
                held.push_back(stream);
            }
            Err(_) => drop(held.pop_front()),
        }
    }
    Ok(())
}

/// Opens every stream that may be opened and fills it as far as it goes, over and over.
async fn pinned(scene: &Scene, outlaw: &Outlaw, victim: SocketAddr) -> Result<()> {
    let role = scene.target.role();
    // Several connections: each has windows of its own.
    let mut members = JoinSet::new();
    for _ in 0..8 {
        let member = outlaw.meet(victim, role, Have::Nothing, None).await?;
        let (connection, control, listening) = listen(member);
        let mut both_ways = Vec::new();
        while let Ok(Ok(pair)) = timeout(Duration::from_millis(200), connection.open_bi()).await {
            both_ways.push(pair);
        }
        scene.fire();
        members.spawn(async move {
            let (_control, _listening) = (control, listening);
            let mut filling = JoinSet::new();
            for (mut send, receive) in both_ways {
                filling.spawn(async move {
                    let block = vec![7; 1 << 20];
                    while send.write_all(&block).await.is_ok() {}
                    drop(receive);
                });
            }
            connection.closed().await;
            drop(filling);
        });
    }
    while members.join_next().await.is_some() {}
    Ok(())
}

/// A frame that is none; the connection ends with it, or should.
async fn frames(scene: &Scene, outlaw: &Outlaw, victim: SocketAddr) -> Result<()> {
    let role = scene.target.role();
    for number in 0_u32.. {
        let mut member = outlaw.meet(victim, role, Have::Nothing, None).await?;
        match scene.attack {
            Attack::Oversize => {
                let claim = if number % 2 == 0 { u32::MAX } else { 33 * 1024 };
                member.say(&claim.to_be_bytes()).await?;
                let _ = member.say(&vec![0; 64 * 1024]).await;
            }
            Attack::Truncated => {
                member.say(&1000_u32.to_be_bytes()).await?;
                member.say(&[0; 10]).await?;
                if number % 2 == 0 {
                    let _ = member.control.finish();
                } else {
                    // And no more: it waits for what never comes.
                    sleep(Duration::from_millis(500)).await;
                }
            }
            Attack::Random => {
                let bytes = foreign(64 + number as usize % 2000, ChunkIndex(number));
                let _ = member.say(&framed(&bytes)).await;
            }
            _ => {
                // Have, Peers, Dial, Drop, Offer: each with 2^64 - 1 things in it.
                let tag = [0, 4, 5, 6, 10][number as usize % 5];
                let frame = [&[tag, 0xfd][..], &u64::MAX.to_le_bytes()].concat();
                let _ = member.say(&framed(&frame)).await;
            }
        }
        scene.fire();
        let _ = timeout(Duration::from_secs(1), member.connection.closed()).await;
        member.connection.close(VarInt::from_u32(0), b"");
    }
    Ok(())
}

async fn chatter(scene: &Scene, outlaw: &Outlaw, victim: SocketAddr) -> Result<()> {
    let role = scene.target.role();
    let have = match scene.attack {
        Attack::Requests | Attack::Haves => Have::Nothing,
        _ => Have::Everything,
    };
    let member = outlaw.meet(victim, role, have, None).await?;
    let (_connection, mut control, _listening) = listen(member);
    let chunks = outlaw.manifest.geometry().chunk_count();
    for number in 0_u32.. {
        let mut batch = Vec::new();
        for offset in 0..BATCH {
            let index = ChunkIndex(number.wrapping_mul(BATCH).wrapping_add(offset) % chunks);
            let message = match scene.attack {
                Attack::Offers => Message::Offer(vec![index; 3]),
                Attack::WantPeers => Message::WantPeers,
                Attack::Haves => Message::Have(vec![
                    ChunkRun {
                        first: index,
                        count: 1
                    };
                    2048
                ]),
                _ if offset % 2 == 0 => Message::Request(index),
                _ => Message::Cancel(index),
            };
            batch.extend(framed(&encode_message(&message)));
            scene.fire();
        }
        write(&mut control, &batch).await?;
    }
    Ok(())
}

/// The smallest windows that let it ask at all.
fn tiny_windows() -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config
        .stream_receive_window(VarInt::from_u32(64))
        .receive_window(VarInt::from_u32(4096))
        .max_concurrent_uni_streams(VarInt::from_u32(1024))
        .keep_alive_interval(Some(Duration::from_secs(1)));
    Arc::new(config)
}

async fn slow_reader(scene: &Scene, outlaw: &Outlaw, victim: SocketAddr) -> Result<()> {
    let role = scene.target.role();
    let mut member = outlaw
        .meet(victim, role, Have::Nothing, Some(tiny_windows()))
        .await?;
    let chunks = outlaw.manifest.geometry().chunk_count();
    loop {
        for index in (0..chunks).map(ChunkIndex) {
            member
                .say(&framed(&encode_message(&Message::Request(index))))
                .await?;
            member
                .say(&framed(&encode_message(&Message::WantPeers)))
                .await?;
            scene.fire();
        }
        // Neither the control stream nor any chunk is ever read.
        sleep(Duration::from_millis(20)).await;
    }
}

async fn silent(scene: &Scene, outlaw: &Outlaw, victim: SocketAddr) -> Result<()> {
    let role = match scene.target {
        Target::Seed => Role::Seed,
        Target::Nodes => Role::Peer,
    };
    let mut kept = Vec::new();
    loop {
        match outlaw.connect(victim, role, None).await {
            Ok(connection) => {
                scene.fire();
                kept.push(connection);
            }
            Err(_) => sleep(PAUSE).await,
        }
        kept.retain(|connection| connection.close_reason().is_none());
    }
}
