//! What an image is: chunks, hash tree, manifest, signature, verifier.
