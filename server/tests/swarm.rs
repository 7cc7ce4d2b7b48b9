//! The server's side of the swarm, against real nodes over real QUIC: who is let in, what names
//! mean, and what happens to a download when a name gets another image.

mod common;

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use common::{Server, address_besides_loopback, key, node, run_ok, squashfs};
use rootswarm_image::{ImageId, SwarmPublicKey};
use rootswarm_transport::node::{JoinError, JoinRequest, Joined, Node, Refusal, SwarmHandle};
use rootswarm_transport::store::ChunkStore;

fn write(directory: &Path, name: &str, bytes: &[u8]) -> String {
    let path = directory.join(name);
    fs::write(&path, bytes).unwrap();
    path.display().to_string()
}

fn request(name: &str, pin: Option<ImageId>, token: Option<&str>) -> JoinRequest {
    JoinRequest {
        name: name.parse().unwrap(),
        pin,
        token: token.map(|token| token.trim().to_owned()),
        rack: None,
    }
}

async fn join(
    server: &Server,
    key: SwarmPublicKey,
    request: &JoinRequest,
) -> Result<(Node, Joined), JoinError> {
    let node = node(key, Ipv4Addr::LOCALHOST.into()).await;
    let joined = node.join(&[server.swarm], request).await?;
    Ok((node, joined))
}

fn fetch(directory: &Path, file: &str, node: Node, joined: Joined) -> (ChunkStore, SwarmHandle) {
    let store = ChunkStore::create(directory.join(file), joined.manifest.clone()).unwrap();
    let handle = node.start(joined, store.clone()).unwrap();
    (store, handle)
}

async fn done(handle: &SwarmHandle) {
    tokio::time::timeout(Duration::from_secs(60), handle.completed())
        .await
        .expect("the download ends")
        .unwrap();
}

fn id_of(bytes: &[u8]) -> ImageId {
    ImageId::from_bytes(*blake3::hash(bytes).as_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_gets_the_image_and_the_server_sees_it() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let image = squashfs(5_000_000, 1);
    let source = write(dir.path(), "image", &image);
    let server = Server::start(&state, &[&format!("web={source}")]);
    server.line();
    let (node, joined) = join(
        &server,
        key(&state),
        &request("web", Some(id_of(&image)), None),
    )
    .await
    .unwrap();
    assert_eq!(
        (joined.tag.id, joined.tag.length),
        (id_of(&image), 5_000_000)
    );
    let (store, handle) = fetch(dir.path(), "fetched", node, joined);
    done(&handle).await;
    store.verify_whole().unwrap();
    assert!(fs::read(dir.path().join("fetched")).unwrap() == image);
    // The seed learns of it within moments, and so does whoever asks the seed.
    let begin = std::time::Instant::now();
    loop {
        let document: serde_json::Value =
            serde_json::from_str(&run_ok(&state, &["status", "--json"])).unwrap();
        let image = &document["images"][0];
        if image["nodes"][0]["complete"] == true
            && image["uploaded_bytes"].as_u64() >= Some(5_000_000)
        {
            assert!(
                (1.0..1.3).contains(&image["seed_copies"].as_f64().unwrap()),
                "{document}"
            );
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(10), "{document}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let table = run_ok(&state, &["status"]);
    assert!(
        table.contains("1 nodes, 1 complete") && table.contains("100%"),
        "{table}"
    );
    handle.shutdown(Duration::from_secs(1)).await;
    assert_eq!(server.stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let image = squashfs(100_000, 1);
    let source = write(dir.path(), "image", &image);
    let server = Server::start(&state, &["--admission", "token", &format!("web={source}")]);
    server.line();
    let key = key(&state);
    let once = run_ok(&state, &["token", "create"]);
    let always = run_ok(&state, &["token", "create", "--reusable"]);
    let other_pin = Some(ImageId::from_bytes([7; 32]));
    // In this order: a refusal for another reason must not use the token up.
    for (name, pin, token, admitted, words) in [
        ("web", None, None, false, "admits by token"),
        (
            "web",
            None,
            Some("00000000-0000"),
            false,
            "unknown, expired or used up",
        ),
        ("db", None, None, false, "admits by token"),
        ("db", None, Some(&*once), false, "no image of that name"),
        ("web", other_pin, Some(&once), false, "pin does not match"),
        ("web", None, Some(&once), true, ""),
        (
            "web",
            None,
            Some(&once),
            false,
            "unknown, expired or used up",
        ),
        ("web", Some(id_of(&image)), Some(&always), true, ""),
        ("web", None, Some(&always), true, ""),
    ] {
        let result = join(&server, key, &request(name, pin, token)).await;
        let said = result
            .as_ref()
            .err()
            .map(ToString::to_string)
            .unwrap_or_default();
        assert_eq!(result.is_ok(), admitted, "{name} {pin:?} {token:?}: {said}");
        assert!(
            said.contains(words),
            "{name} {pin:?} {token:?}: expected {words:?} in {said:?}"
        );
    }
    // Somebody else's seed.
    let stranger = rootswarm_image::SwarmKey::generate().unwrap().public();
    match join(&server, stranger, &request("web", None, Some(&always))).await {
        Err(JoinError::Trust { .. }) => {}
        other => panic!("{:?}", other.map(|_| "joined")),
    }
    assert_eq!(server.stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_outside_the_allow_list_is_refused() {
    let address = address_besides_loopback();
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let source = write(dir.path(), "image", &squashfs(1000, 1));
    let server = Server::start(
        &state,
        &[
            "--listen",
            "0.0.0.0:0",
            "--allow",
            "233.252.0.0/24",
            &format!("web={source}"),
        ],
    );
    server.line();
    let node = node(key(&state), address).await;
    let seed = (address, server.swarm.port()).into();
    match node.join(&[seed], &request("web", None, None)).await {
        Err(JoinError::Refused {
            refusal: Refusal::NotAdmitted(reason),
            ..
        }) => {
            assert!(reason.contains(&address.to_string()), "{reason}");
        }
        other => panic!("{:?}", other.map(|_| "joined")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_ends_on_the_image_it_began_with() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let (old, new) = (squashfs(2_000_000, 1), squashfs(2_000_000, 2));
    let source = write(dir.path(), "image", &old);
    // Slow enough to be in the middle of it: 2 MB at 250 kB/s are 8 s.
    let server = Server::start(
        &state,
        &["--upload-limit", "250kB/s", &format!("web={source}")],
    );
    server.line();
    let key = key(&state);
    let (node, joined) = join(&server, key, &request("web", None, None))
        .await
        .unwrap();
    let (_store, handle) = fetch(dir.path(), "fetched", node, joined);
    // The admin overwrites his file in place and publishes it again.
    fs::write(&source, &new).unwrap();
    let url = run_ok(&state, &["publish", "-q", "web", &source]);
    assert_eq!(server.line(), format!("ready {}", url.trim()));
    assert!(
        !handle.missing().is_empty(),
        "the download was over before the image changed"
    );
    // Newcomers get the new one, the old one with its pin, and are told so if they want another.
    let (_node, joined) = join(&server, key, &request("web", Some(id_of(&old)), None))
        .await
        .unwrap();
    assert_eq!((joined.tag.id, joined.tag.version), (id_of(&old), 1));
    // Of another odd number: the generator of images takes 2 for 3.
    let never = id_of(&squashfs(2_000_000, 5));
    assert_ne!(never, id_of(&new));
    match join(&server, key, &request("web", Some(never), None)).await {
        Err(JoinError::PinMismatch { found, .. }) => assert_eq!(found, id_of(&new)),
        Err(JoinError::Refused {
            refusal: Refusal::PinMismatch { current },
            ..
        }) => assert_eq!(current, id_of(&new)),
        other => panic!("{:?}", other.map(|_| "joined")),
    }
    let (_node, joined) = join(&server, key, &request("web", None, None))
        .await
        .unwrap();
    assert_eq!((joined.tag.id, joined.tag.version), (id_of(&new), 2));
    done(&handle).await;
    assert!(
        fs::read(dir.path().join("fetched")).unwrap() == old,
        "the download changed in the middle"
    );
    handle.shutdown(Duration::from_secs(1)).await;
}
