//! What a seed's HTTP side says about an image, believed only as far as pin or signature reach:
//! the signed tag at /tags/NAME (of an earlier generation at /tags/NAME@HEX), the manifest at
//! /manifests/HEX, the bytes at /blobs/HEX.

use std::sync::Arc;

use rootswarm_image::limits::{MAX_MANIFEST_BYTES, MAX_SIGNED_TAG_BYTES};
use rootswarm_image::{HostPort, ImageId, ImageName, Manifest, SignedTag, SwarmPublicKey, Tag};

use crate::fetch::FetchError;
use crate::http::{HttpClient, Target};
use crate::plan::{FetchPlan, Trust};
use crate::remedy::{Remedy, remedy};

/// An image that can be had over HTTP.
#[derive(Debug, Clone)]
pub struct HttpImage {
    /// Its chunks.
    pub manifest: Arc<Manifest>,
    /// Its bytes.
    pub blob: Target,
}

impl HttpImage {
    /// This image at `host`, if it has it.
    pub fn at(host: &HostPort, port: u16, manifest: Arc<Manifest>) -> HttpImage {
        let path = format!("/blobs/{}", manifest.id());
        let host = host.host.clone();
        HttpImage {
            manifest,
            blob: Target { host, port, path },
        }
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
        match find_at(client, plan, &server, name).await {
            Ok(manifest) => return Ok(HttpImage::at(host, plan.http_port, Arc::new(manifest))),
            // One that only the operator mends hides nothing that may come yet.
            Err(error) if last.is_some() && remedy(&error) == Remedy::Operator => {}
            Err(error) => last = Some(error),
        }
    }
    // A rooturl always has a host; without one there is nothing to find.
    Err(last.unwrap_or_else(|| FetchError::Document {
        url: name.to_string(),
        reason: "no host to ask".to_owned(),
    }))
}

/// What `server` says about the image called `name`, as far as the plan believes it.
pub async fn find_at(
    client: &HttpClient,
    plan: &FetchPlan,
    server: &Target,
    name: &ImageName,
) -> Result<Manifest, FetchError> {
    let bad = |target: &Target, reason: String| {
        let url = target.to_string();
        FetchError::Document { url, reason }
    };
    match &plan.trust {
        // The key decides, and a pin only among what the key vouches for: otherwise whoever writes
        // the command line could pin an image of his own.
        Trust::Key { key, pin } => {
            let mut target = server.sibling(format!("/tags/{name}"));
            let mut tag = tag_at(client, &target, key, name).await?;
            if let Some(pinned) = pin
                && *pinned != tag.id
            {
                let wrong = FetchError::WrongImage {
                    url: target.to_string(),
                    pinned: Box::new(*pinned),
                    found: Box::new(tag.id),
                };
                // The name has come to mean another image, and the one before is kept for a while.
                target = server.sibling(format!("/tags/{name}@{pinned}"));
                tag = match tag_at(client, &target, key, name).await {
                    Ok(tag) if tag.id == *pinned => tag,
                    _ => return Err(wrong),
                };
            }
            if pin.is_none() {
                plan.minimum.check(&tag, &target.to_string())?;
            }
            let (target, bytes) = manifest_bytes(client, server, &tag.id).await?;
            let manifest = tag
                .decode_manifest(&bytes)
                .map_err(|e| bad(&target, e.to_string()))?;
            Ok(manifest)
        }
        Trust::Pin(pin) => {
            let (target, bytes) = manifest_bytes(client, server, pin).await?;
            let manifest =
                Manifest::decode(&bytes, pin).map_err(|e| bad(&target, e.to_string()))?;
            Ok(manifest)
        }
        Trust::Unverified => Err(bad(server, "nothing to hold the image to".to_owned())),
    }
}

async fn tag_at(
    client: &HttpClient,
    target: &Target,
    key: &SwarmPublicKey,
    name: &ImageName,
) -> Result<Tag, FetchError> {
    let bad = |reason: String| {
        let url = target.to_string();
        FetchError::Document { url, reason }
    };
    let limit = MAX_SIGNED_TAG_BYTES as u64;
    let bytes = client.get_small(target, limit).await?;
    let signed = SignedTag::decode(&bytes).map_err(|e| bad(e.to_string()))?;
    signed.verify(key, name).map_err(|e| bad(e.to_string()))
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
