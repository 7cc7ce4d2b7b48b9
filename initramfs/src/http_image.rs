//! What a seed's HTTP side says about an image, believed only as far as pin or signature reach:
//! the signed tag at /tags/NAME, the manifest at /manifests/HEX, the bytes at /blobs/HEX.

use std::sync::Arc;

use rootswarm_image::limits::{MAX_MANIFEST_BYTES, MAX_SIGNED_TAG_BYTES};
use rootswarm_image::{HostPort, ImageId, ImageName, Manifest, SignedTag};

use crate::fetch::FetchError;
use crate::http::{HttpClient, Target};
use crate::plan::{FetchPlan, Trust};

/// An image that can be had over HTTP.
#[derive(Debug, Clone)]
pub struct HttpImage {
    /// Its chunks.
    pub manifest: Arc<Manifest>,
    /// Its bytes.
    pub blob: Target,
}

impl HttpImage {
    /// Another image at the same server.
    pub fn of(&self, manifest: Arc<Manifest>) -> HttpImage {
        let blob = self.blob.sibling(format!("/blobs/{}", manifest.id()));
        HttpImage { manifest, blob }
    }
}

/// Asks each host in turn for the image that the plan may take; the last error if none has it.
pub async fn find(
    client: &HttpClient,
    plan: &FetchPlan,
    hosts: &[HostPort],
    name: &ImageName,
) -> Result<HttpImage, FetchError> {
    let mut last = None;
    for host in hosts {
        let server = Target {
            host: host.host.clone(),
            port: plan.http_port,
            path: "/".to_owned(),
        };
        match find_at(client, &plan.trust, &server, name).await {
            Ok(image) => return Ok(image),
            Err(error) => last = Some(error),
        }
    }
    // A rooturl always has a host; without one there is nothing to find.
    Err(last.unwrap_or_else(|| FetchError::Document {
        url: name.to_string(),
        reason: "no host to ask".to_owned(),
    }))
}

async fn find_at(
    client: &HttpClient,
    trust: &Trust,
    server: &Target,
    name: &ImageName,
) -> Result<HttpImage, FetchError> {
    let bad = |target: &Target, reason: String| {
        let url = target.to_string();
        FetchError::Document { url, reason }
    };
    match trust {
        // The key decides, and a pin only among what the key vouches for: otherwise whoever writes
        // the command line could pin an image of his own.
        Trust::Key { key, pin } => {
            let target = server.sibling(format!("/tags/{name}"));
            let bytes = client
                .get_small(&target, MAX_SIGNED_TAG_BYTES as u64)
                .await?;
            let signed = SignedTag::decode(&bytes).map_err(|e| bad(&target, e.to_string()))?;
            let tag = signed
                .verify(key, name)
                .map_err(|e| bad(&target, e.to_string()))?;
            if let Some(pinned) = pin
                && *pinned != tag.id
            {
                return Err(FetchError::WrongImage {
                    url: target.to_string(),
                    pinned: Box::new(*pinned),
                    found: Box::new(tag.id),
                });
            }
            let (target, bytes) = manifest_bytes(client, server, &tag.id).await?;
            let manifest = tag
                .decode_manifest(&bytes)
                .map_err(|e| bad(&target, e.to_string()))?;
            Ok(image_at(server, manifest))
        }
        Trust::Pin(pin) => {
            let (target, bytes) = manifest_bytes(client, server, pin).await?;
            let manifest =
                Manifest::decode(&bytes, pin).map_err(|e| bad(&target, e.to_string()))?;
            Ok(image_at(server, manifest))
        }
        Trust::Unverified => Err(bad(server, "nothing to hold the image to".to_owned())),
    }
}

async fn manifest_bytes(
    client: &HttpClient,
    server: &Target,
    id: &ImageId,
) -> Result<(Target, Vec<u8>), FetchError> {
    let target = server.sibling(format!("/manifests/{id}"));
    let bytes = client.get_small(&target, MAX_MANIFEST_BYTES as u64).await?;
    Ok((target, bytes))
}

fn image_at(server: &Target, manifest: Manifest) -> HttpImage {
    let blob = server.sibling(format!("/blobs/{}", manifest.id()));
    HttpImage {
        manifest: Arc::new(manifest),
        blob,
    }
}
