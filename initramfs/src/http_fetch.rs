//! `rooturl=http://…`: one file from one web server, as every older setup has it, with resuming.
//!
//! With a pin the image is verified: chunk by chunk when the server also has the manifest (a seed
//! does), as a whole otherwise. Without a pin it is taken as it comes, and the console says so.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rootswarm_image::limits::MAX_MANIFEST_BYTES;
use rootswarm_image::{HttpUrl, ImageId, Manifest};
use rootswarm_transport::store::ChunkStore;

use crate::exit::Classified;
use crate::fetch::{Destination, FetchError, Fetched, part_of};
use crate::http::{HttpClient, Target};
use crate::http_chunks::{self, ChunkSink, StoreSink};
use crate::http_error::HttpError;
use crate::http_image;
use crate::http_response::{LEAST_BYTES, Response};
use crate::patience::Patience;
use crate::plan::{self, FetchPlan, Trust};
use crate::progress::Snapshot;
use crate::remedy::{Remedy, remedy};
use crate::report::Reporter;
use crate::status::Phase;

/// Fetches the file at `url`.
pub async fn fetch(
    plan: &FetchPlan,
    url: &HttpUrl,
    destination: &mut dyn Destination,
    reporter: &mut Reporter,
) -> Result<Fetched, FetchError> {
    let client = HttpClient::of_plan(plan);
    let target = Target::of(url);
    let pin = plan.trust.pin();
    if let (Trust::Key { .. }, Some(name)) = (&plan.trust, plan::name_at_seed(url)) {
        // A seed's HTTP side: its key vouches for the image, and each chunk is held to that.
        let mut patience = Patience::new(plan.patience);
        let manifest = loop {
            match http_image::find_at(&client, plan, &target, &name).await {
                Ok(manifest) => break manifest,
                Err(error) => retry(error, &mut patience, reporter).await?,
            }
        };
        reporter.image(manifest.id());
        let blob = target.sibling(format!("/blobs/{}", manifest.id()));
        return by_chunks(plan, &client, &blob, manifest, destination, reporter).await;
    }
    match &pin {
        Some(pin) => {
            reporter.image(pin);
            let manifest_path = format!("/manifests/{pin}");
            let manifest = client
                .get_small(&target.sibling(manifest_path), MAX_MANIFEST_BYTES as u64)
                .await
                .ok()
                .and_then(|bytes| Manifest::decode(&bytes, pin).ok());
            if let Some(manifest) = manifest {
                // A seed's name may mean another image by now; the pinned one has a path of its own.
                let blob = match plan::name_at_seed(url) {
                    Some(_) => target.sibling(format!("/blobs/{pin}")),
                    None => target,
                };
                return by_chunks(plan, &client, &blob, manifest, destination, reporter).await;
            }
        }
        None => reporter.say(&format!(
            "WARNING: {target} is not verified: append @blake3:HEX (b3sum of the image) to the \
             rooturl"
        )),
    }
    let patience = Patience::new(plan.patience);
    let (client, target, place, stream, refused) = (&client, &target, None, None, None);
    let came = 0;
    Whole {
        client,
        target,
        pin,
        destination,
        reporter,
        patience,
        place,
        stream,
        came,
        refused,
    }
    .run()
    .await
}

async fn by_chunks(
    plan: &FetchPlan,
    client: &HttpClient,
    target: &Target,
    manifest: Manifest,
    destination: &mut dyn Destination,
    reporter: &mut Reporter,
) -> Result<Fetched, FetchError> {
    let manifest = Arc::new(manifest);
    let length = manifest.geometry().length();
    let path = destination
        .prepare(Some(length), reporter)
        .map_err(FetchError::Prepare)?;
    let part = part_of(&path);
    let store = open_store(&part, Arc::clone(&manifest))?;
    reporter.phase(Phase::Fetching);
    let mut sink = StoreSink::new(store.clone());
    reporter.progress(sink.snapshot());
    let mut patience = Patience::of_transfer(plan.patience);
    while !store.is_complete() {
        let before = sink.bytes_stored;
        let result = http_chunks::fill(client, target, &manifest, &mut sink, &mut |snapshot| {
            reporter.progress(snapshot);
        })
        .await;
        if sink.bytes_stored > before {
            patience.progressed();
        }
        let Err(error) = result else { continue };
        retry(error, &mut patience, reporter).await?;
    }
    reporter.progress(sink.snapshot());
    reporter.phase(Phase::Verifying);
    store.verify_whole()?;
    std::fs::rename(&part, &path).map_err(FetchError::file("rename to", &path))?;
    let image = Some(*manifest.id());
    Ok(Fetched {
        path,
        image,
        transfer: sink.snapshot(),
        serving: None,
    })
}

/// What an earlier try left, if it is of this image; a new store otherwise.
pub fn open_store(part: &Path, manifest: Arc<Manifest>) -> Result<ChunkStore, FetchError> {
    use rootswarm_transport::store::StoreError;
    if part.exists() {
        match ChunkStore::resume(part, Arc::clone(&manifest)) {
            Ok(store) => return Ok(store),
            Err(busy @ StoreError::Busy { .. }) => return Err(busy.into()),
            // Another image's rest, or nothing that can be read: begin anew.
            Err(_) => {}
        }
    }
    Ok(ChunkStore::create(part, manifest)?)
}

/// Waits before the next try, or ends it.
async fn retry(
    error: FetchError,
    patience: &mut Patience,
    reporter: &mut Reporter,
) -> Result<(), FetchError> {
    let Remedy::Wait(pace) = remedy(&error) else {
        return Err(error);
    };
    reporter.retry(&error, patience.left());
    if patience.wait(pace).await {
        return Ok(());
    }
    Err(FetchError::GaveUp {
        limit: patience.limit(),
        cause: error.to_string(),
        exit: error.exit(),
    })
}

/// A download as one stream, over as many requests as it takes.
struct Whole<'a> {
    client: &'a HttpClient,
    target: &'a Target,
    pin: Option<ImageId>,
    destination: &'a mut dyn Destination,
    reporter: &'a mut Reporter,
    patience: Patience,
    /// Where the whole goes, once the destination has been asked.
    place: Option<PathBuf>,
    stream: Option<Stream>,
    /// Bytes since patience was last full: a few are no progress.
    came: u64,
    /// What came whole and was another image than the pinned one.
    refused: Option<Refused>,
}

/// A file that has been fetched once too often.
struct Refused {
    /// What the server called it.
    validator: Option<String>,
    total: Option<u64>,
    found: ImageId,
}

impl Refused {
    /// Whether a server that answers like this has it still. One that gives its files no names is
    /// taken at their length: images differ in it, but for one in thousands.
    fn is(&self, response: &Response) -> bool {
        self.total == response.total && self.validator == response.validator
    }
}

impl Whole<'_> {
    async fn run(mut self) -> Result<Fetched, FetchError> {
        loop {
            if let Err(error) = self.one_request().await {
                retry(error, &mut self.patience, self.reporter).await?;
                continue;
            }
            // Both are there once a request has ended well.
            let (Some(stream), Some(path)) = (&mut self.stream, &self.place) else {
                continue;
            };
            let found = stream
                .hasher
                .as_ref()
                .map(|h| ImageId::from_bytes(*h.finalize().as_bytes()));
            if let (Some(pinned), Some(found)) = (self.pin, found)
                && pinned != found
            {
                if stream.inherited {
                    // What an earlier run left may be of another version: once more, from the
                    // start.
                    stream.restart(path)?;
                    continue;
                }
                // The pinned one may be on its way to the server.
                self.refused = Some(Refused {
                    validator: stream.validator.take(),
                    total: stream.total,
                    found,
                });
                stream.restart(path)?;
                let error = self.wrong_image(pinned, found);
                retry(error, &mut self.patience, self.reporter).await?;
                continue;
            }
            let (path, have) = (path.clone(), stream.have);
            let received = self.reporter.transfer().bytes_from_http;
            let transfer = Snapshot {
                bytes_total: have,
                ..snapshot(have, received)
            };
            self.reporter.progress(transfer);
            std::fs::rename(part_of(&path), &path).map_err(FetchError::file("rename to", &path))?;
            return Ok(Fetched {
                path,
                image: found,
                transfer,
                serving: None,
            });
        }
    }

    fn wrong_image(&self, pinned: ImageId, found: ImageId) -> FetchError {
        FetchError::WrongImage {
            url: self.target.to_string(),
            pinned: Box::new(pinned),
            found: Box::new(found),
        }
    }

    /// One request, and its body as far as it comes.
    async fn one_request(&mut self) -> Result<(), FetchError> {
        let (client, target) = (self.client, self.target);
        let mut response = match &self.stream {
            Some(stream) if stream.total == Some(stream.have) => return Ok(()),
            // Without a name for the file, a later part could be of another one: only a pin would
            // notice.
            Some(stream)
                if stream.have > 0 && (stream.validator.is_some() || self.pin.is_some()) =>
            {
                let rest = Some(stream.have..u64::MAX);
                client
                    .get(target, rest, stream.validator.as_deref())
                    .await?
            }
            _ => client.get(target, None, None).await?,
        };
        if let (Some(refused), Some(pinned)) = (&self.refused, self.pin)
            && refused.is(&response)
        {
            return Err(self.wrong_image(pinned, refused.found));
        }
        let path = match &self.place {
            Some(path) => path.clone(),
            None => {
                let path = self
                    .destination
                    .prepare(response.total, self.reporter)
                    .map_err(FetchError::Prepare)?;
                self.place.insert(path).clone()
            }
        };
        let part = part_of(&path);
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let opened = Stream::open(&part, self.pin.is_some())?;
                self.patience = Patience::of_transfer(self.patience.limit());
                self.reporter.phase(Phase::Fetching);
                let inherited = opened.have;
                if inherited > 0 && response.total.is_some_and(|total| inherited < total) {
                    // Ask again, for the rest only.
                    response = client.get(target, Some(inherited..u64::MAX), None).await?;
                }
                self.stream.insert(opened)
            }
        };
        if stream.have != response.start
            || stream
                .total
                .is_some_and(|total| Some(total) != response.total)
        {
            // The server sends the whole, or another file.
            stream.restart(&path)?;
            if response.start != 0 {
                return Ok(());
            }
        }
        stream.total = response.total;
        stream.validator = response.validator.clone();
        let total = response.total.unwrap_or(0);
        let mut received = self.reporter.transfer().bytes_from_http;
        while let Some(piece) = response.next().await? {
            stream.write(&piece, &part)?;
            // Once refused, it is not bytes that are waited for but the right ones.
            self.came += piece.len() as u64;
            if self.refused.is_none() && self.came >= LEAST_BYTES {
                self.patience.progressed();
                self.came = 0;
            }
            received += piece.len() as u64;
            let transfer = Snapshot {
                bytes_total: total,
                ..snapshot(stream.have, received)
            };
            self.reporter.progress(transfer);
        }
        if let Some(expected) = stream.total
            && stream.have < expected
        {
            let url = response.url().to_owned();
            return Err(HttpError::CutOff {
                url,
                expected,
                found: stream.have,
            }
            .into());
        }
        // A server that did not say how long the file is has ended it properly: that is the file.
        stream.total = Some(stream.have);
        Ok(())
    }
}

fn snapshot(have: u64, received: u64) -> Snapshot {
    Snapshot {
        bytes_have: have,
        bytes_from_http: received,
        ..Snapshot::default()
    }
}

/// The file being written, hashed on the way when there is a pin.
struct Stream {
    file: File,
    hasher: Option<blake3::Hasher>,
    have: u64,
    /// What the server called the file we have a part of.
    validator: Option<String>,
    total: Option<u64>,
    /// The part comes from an earlier run of the program.
    inherited: bool,
}

impl Stream {
    /// Opens the partial file. Only with a pin is what an earlier run left worth anything: it is
    /// hashed again, and the hash of the whole decides.
    fn open(part: &Path, pinned: bool) -> Result<Stream, FetchError> {
        use std::os::unix::fs::OpenOptionsExt;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(!pinned)
            // A root image holds password hashes and host keys.
            .mode(0o600)
            .open(part)
            .map_err(FetchError::file("open", part))?;
        let mut hasher = pinned.then(blake3::Hasher::new);
        let mut have = 0;
        if let Some(hasher) = &mut hasher {
            let mut buffer = vec![0; 1 << 20];
            loop {
                let read = file
                    .read(&mut buffer)
                    .map_err(FetchError::file("read", part))?;
                if read == 0 {
                    break;
                }
                hasher.update(&buffer[..read]);
                have += read as u64;
            }
        }
        Ok(Stream {
            file,
            hasher,
            have,
            validator: None,
            total: None,
            inherited: have > 0,
        })
    }

    fn write(&mut self, piece: &[u8], part: &Path) -> Result<(), FetchError> {
        self.file
            .write_all(piece)
            .map_err(FetchError::file("write", part))?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(piece);
        }
        self.have += piece.len() as u64;
        Ok(())
    }

    fn restart(&mut self, path: &Path) -> Result<(), FetchError> {
        self.file
            .set_len(0)
            .map_err(FetchError::file("truncate", path))?;
        self.file
            .seek(SeekFrom::Start(0))
            .map_err(FetchError::file("rewind", path))?;
        if let Some(hasher) = &mut self.hasher {
            hasher.reset();
        }
        (self.have, self.total, self.validator, self.inherited) = (0, None, None, false);
        Ok(())
    }
}
