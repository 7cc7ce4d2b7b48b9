//! What the list says after commands, mirrors and backups.

use std::fs;

use super::*;

fn list() -> (tempfile::TempDir, RevocationList) {
    let dir = tempfile::tempdir().unwrap();
    let list = RevocationList::new(StateDir::open(dir.path()).unwrap());
    (dir, list)
}

const ONE: NodeId = NodeId([0x11; 32]);
const TWO: NodeId = NodeId([0x22; 32]);

#[test]
fn the_file_follows_each_change() {
    let (dir, list) = list();
    assert_eq!(list.load().unwrap(), Contents::default());
    list.revoke(ONE, 5).unwrap();
    list.revoke(TWO, 6).unwrap();
    let text = fs::read_to_string(dir.path().join("revoked")).unwrap();
    let (one, two) = ("11".repeat(32), "22".repeat(32));
    let expected = format!("rootswarm-revoked 1\nversion 2 epoch 1\n{one} 5\n{two} 6\n");
    assert_eq!(text, expected);
    assert!(matches!(
        list.revoke(ONE, 7),
        Err(RevocationError::Already(_))
    ));
    list.undo(ONE).unwrap();
    assert!(matches!(
        list.undo(ONE),
        Err(RevocationError::Unknown { .. })
    ));
    assert_eq!(list.load().unwrap().to_wire().nodes, [TWO]);
    assert_eq!(list.revoke_all().unwrap(), 3);
    let contents = list.load().unwrap();
    assert_eq!((contents.version, contents.epoch), (4, 3));
    assert_eq!(contents.nodes, []);
}

#[test]
fn a_mirror_takes_newer_lists_only() {
    let ((_dir, primary), (_other, mirror)) = (list(), list());
    primary.revoke(ONE, 5).unwrap();
    assert_eq!(mirror.adopt(&primary.to_mirror().unwrap()).unwrap(), None);
    assert_eq!(mirror.load().unwrap(), primary.load().unwrap());
    // It took over, and the primary comes back with what it knew.
    mirror.revoke(TWO, 6).unwrap();
    let line = mirror.adopt(&primary.to_mirror().unwrap()).unwrap();
    let words = "revocations are version 1 in epoch 1, behind version 2 in epoch 1";
    assert!(line.unwrap().contains(words));
    assert_eq!(mirror.load().unwrap().nodes.len(), 2);
    // Epochs never go back, however often the primary's list has changed.
    mirror.revoke_all().unwrap();
    for _ in 0..3 {
        primary.undo(ONE).unwrap();
        primary.revoke(ONE, 7).unwrap();
    }
    assert!(
        mirror
            .adopt(&primary.to_mirror().unwrap())
            .unwrap()
            .is_some()
    );
    assert_eq!(mirror.load().unwrap().epoch, 3);
    for bad in [&b""[..], b"\xff", b"rootswarm-revoked 1\nversion 9\n"] {
        assert!(mirror.adopt(bad).is_err());
    }
}

#[test]
fn an_older_file_gives_way_to_what_is_held() {
    let id = |node: NodeId| node_hex(&node);
    let held = Contents {
        version: 5,
        epoch: 3,
        nodes: vec![(ONE, 5)],
    };
    let text = |version: u64, epoch: u32, node: NodeId| {
        format!(
            "{HEADER}\nversion {version} epoch {epoch}\n{} 5\n",
            id(node)
        )
    };
    // What is found, and the version, epoch and node that hold afterwards.
    for (found, expected, put_back) in [
        (Some(text(5, 3, ONE)), (5, 3, ONE), false),
        (Some(text(6, 3, TWO)), (6, 3, TWO), false),
        (Some(text(9, 5, TWO)), (9, 5, TWO), false),
        (Some(text(4, 3, TWO)), (5, 3, ONE), true),
        (Some(text(1, 1, TWO)), (5, 3, ONE), true),
        (Some(text(5, 3, TWO)), (5, 3, ONE), true),
        (Some(text(8, 1, TWO)), (9, 3, ONE), true),
        (Some(text(2, 7, TWO)), (5, 3, ONE), true),
        (None, (5, 3, ONE), true),
    ] {
        let (dir, list) = list();
        let file = dir.path().join("revoked");
        if let Some(found) = &found {
            fs::write(&file, found).unwrap();
        }
        let (holds, line) = list.put_back(&held).unwrap();
        let numbers = (holds.version, holds.epoch, holds.nodes[0].0);
        assert_eq!((numbers, line.is_some()), (expected, put_back), "{found:?}");
        assert_eq!(list.load().unwrap(), holds, "{found:?}");
    }
}

#[test]
fn the_list_has_an_end() {
    let (_dir, list) = list();
    let nodes = (0..REVOKED_MAX as u32).map(|number| {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&number.to_be_bytes());
        (NodeId(id), 1)
    });
    let full = Contents {
        version: 1,
        epoch: 1,
        nodes: nodes.collect(),
    };
    list.store(&full).unwrap();
    assert_eq!(list.load().unwrap(), full);
    assert!(matches!(list.revoke(ONE, 1), Err(RevocationError::TooMany)));
    list.revoke_all().unwrap();
    list.revoke(ONE, 1).unwrap();
}

#[test]
fn damaged_files_are_refused_with_the_line() {
    let (dir, list) = list();
    let id = "11".repeat(32);
    for (text, line) in [
        (String::new(), 1),
        ("rootswarm-revoked 2\n".to_owned(), 1),
        (format!("{HEADER}\n"), 2),
        (format!("{HEADER}\nversion x epoch 1\n"), 2),
        (format!("{HEADER}\nversion 1 epoch 1\n{id}\n"), 3),
        (format!("{HEADER}\nversion 1 epoch 1\n{id} 1\nabc 1\n"), 4),
    ] {
        fs::write(dir.path().join("revoked"), &text).unwrap();
        match list.load() {
            Err(RevocationError::Damaged { line: found, .. }) => {
                assert_eq!(found, line, "{text:?}");
            }
            other => panic!("{text:?}: {other:?}"),
        }
    }
}

#[test]
fn a_prefix_must_mean_one_node() {
    let mut near = ONE;
    near.0[31] = 0;
    let known = [ONE, near, TWO, TWO];
    let check = |prefix: &str| resolve(prefix, "connected", known).map_err(|e| e.to_string());
    assert_eq!(check("2"), Ok(TWO));
    assert_eq!(check(&"22".repeat(32)), Ok(TWO));
    assert_eq!(
        check(&"33".repeat(32)),
        Ok(NodeId([0x33; 32])),
        "not connected"
    );
    assert!(
        check("11")
            .unwrap_err()
            .starts_with("11 is ambiguous: the ids of 2 connected")
    );
    assert!(
        check("3")
            .unwrap_err()
            .starts_with("no connected node's id begins with 3 (")
    );
    for bad in ["", "xyz", "../", &"1".repeat(65)] {
        assert!(check(bad).unwrap_err().starts_with("bad node "), "{bad}");
    }
}
