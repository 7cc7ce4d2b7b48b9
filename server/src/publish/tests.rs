//! The bound on the memory of manifests: what is beyond is neither published nor served.

use std::fs::{self, File};

use rootswarm_image::{ChunkSize, Geometry, ImageId, ImageName, Manifest, Tag};

use super::*;
use crate::catalogue::Catalogue;
use crate::progress::Quiet;
use crate::state::FIRST_EPOCH;

/// 65,536 chunks of 64 KiB: no manifest is longer.
const LENGTH: u64 = 4 << 30;

/// An image of the longest manifest there can be: its file is a hole, its hashes are of nothing.
fn place_image(state: &StateDir, number: u8) -> ImageId {
    let geometry = Geometry::new(LENGTH, ChunkSize::MIN).unwrap();
    let hashes = vec![[number; 32]; geometry.chunk_count() as usize];
    let manifest = Manifest::new(geometry, hashes).unwrap();
    let place = state.copy(manifest.id());
    fs::create_dir_all(&place).unwrap();
    fs::write(place.join("manifest"), manifest.encode()).unwrap();
    let image = File::create(place.join("image")).unwrap();
    image.set_len(LENGTH).unwrap();
    *manifest.id()
}

fn name_image(state: &StateDir, key: &SwarmKey, name: &ImageName, id: ImageId) {
    let tag = Tag {
        name: name.clone(),
        id,
        length: LENGTH,
        chunk_size: ChunkSize::MIN,
        version: state.next_version(name).unwrap(),
        epoch: FIRST_EPOCH,
    };
    state.name_the_copy(&tag.sign(key)).unwrap();
}

/// Sixteen of the longest are served, as sixteen names or as generations of a few; the seventeenth is
/// said and left out until there is room, and a publish is refused before anything is copied.
#[test]
fn manifests_beyond_the_servers_memory_are_neither_published_nor_served() {
    for generations in [1, 4, 8] {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap().keeping(generations);
        let key = state.key().unwrap();
        let name = |number: usize| -> ImageName {
            let text = format!("image{:02}", number / generations);
            text.parse().unwrap()
        };
        let most =
            SERVED_MANIFESTS_BYTES_MAX / Manifest::max_encoded_len(LENGTH, ChunkSize::MIN).unwrap();
        assert_eq!(most, 16);
        for number in 0..most {
            let id = place_image(&state, number as u8);
            name_image(&state, &key, &name(number), id);
        }
        let catalogue = Catalogue::new(state.clone(), key.public(), false);
        assert_eq!(catalogue.reload().unwrap().len(), 0);
        assert_eq!(catalogue.snapshot().copies().count(), most);

        // A new name is refused, even one of a single chunk; nothing is left of it.
        let source = dir.path().join("new");
        fs::write(&source, vec![7; 1000]).unwrap();
        let attempt = |name: &ImageName| {
            let request = Request {
                name,
                source: &source,
                chunk_size: None,
                unchanged: Unchanged::NewVersion,
                force: true,
            };
            publish(&state, &key, &request, &Quiet)
        };
        let refused = attempt(&"new".parse().unwrap()).unwrap_err();
        assert_eq!(
            refused.to_string(),
            format!(
                "no room for the manifest of {}: it takes 50 B, and of the 33.6 MB for the manifests of \
                 all images 0 B are free (publish it with a larger --chunk-size, `rootswarm remove` an \
                 image, or keep fewer generations with --keep)",
                source.display()
            )
        );
        assert_eq!(fs::read_dir(state.images()).unwrap().count(), most);

        // Whatever puts it there all the same, it is not served.
        let last: ImageName = "zz".parse().unwrap();
        let id = place_image(&state, 255);
        name_image(&state, &key, &last, id);
        let damages = catalogue.reload().unwrap();
        let said: Vec<String> = damages.iter().map(ToString::to_string).collect();
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(
            said[0].contains("is not served: no room for its manifest: it takes 2.1 MB")
                && !said[0].contains("damaged"),
            "{said:?}"
        );
        assert_eq!(catalogue.snapshot().copies().count(), most);

        // It is once there is room: when a name went, and nobody fetches what it meant.
        state.remove(&name(0)).unwrap();
        assert_eq!(catalogue.reload().unwrap().len(), 1);
        let leaving: Vec<ImageId> = catalogue
            .snapshot()
            .leaving()
            .map(|copy| *copy.id())
            .collect();
        assert_eq!(leaving.len(), generations);
        for id in leaving {
            catalogue.release(&id);
        }
        assert_eq!(catalogue.reload().unwrap().len(), 0);
        assert!(catalogue.snapshot().image(&last).is_some());
        // A name whose oldest generation goes has room for a new image.
        attempt(&name(most - 1)).unwrap();
    }
}
