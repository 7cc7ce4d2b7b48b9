//! A loop device over the RAM image, by its two ioctls: no `losetup` in the initrd.
//!
//! The device is read-only and clears itself when its last user goes away, so an unmount, or
//! dropping [`LoopDevice`] before the mount, leaves nothing behind.

use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Setter};

/// An attached loop device. Keep it until the file system on it is mounted; then drop it.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    /// Holds the device against clearing itself.
    _device: OwnedFd,
}

impl LoopDevice {
    /// Attaches `image` read-only. `dev` is where the device nodes are: `/dev`.
    pub fn attach(image: &Path, dev: &Path) -> io::Result<LoopDevice> {
        let backing = File::open(image)?;
        let control = OpenOptions::new()
            .read(true)
            .write(true)
            .open(dev.join("loop-control"))?;
        // Another process may take the number between the two calls; the kernel then says EBUSY.
        for _ in 0..MAX_ATTEMPTS {
            // SAFETY: GetFree takes no argument and reads nothing but the return value.
            let number = unsafe { rustix::ioctl::ioctl(&control, GetFree) }?;
            let path = dev.join(format!("loop{number}"));
            let device = OpenOptions::new().read(true).open(&path)?;
            match configure(&device, &backing, image) {
                Ok(()) => {
                    return Ok(LoopDevice {
                        path,
                        _device: device.into(),
                    });
                }
                Err(Errno::BUSY) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Errno::BUSY.into())
    }

    /// The device node: what to mount.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// How often a freshly taken number is given up to somebody faster.
const MAX_ATTEMPTS: u32 = 16;

fn configure(device: &File, backing: &File, image: &Path) -> Result<(), Errno> {
    let mut info = LoopInfo64::ZERO;
    // What `losetup` shows; the kernel wants it zero-terminated.
    let name = image.as_os_str().as_bytes();
    let shown = name.len().min(info.file_name.len() - 1);
    info.file_name[..shown].copy_from_slice(&name[..shown]);
    // Direct I/O spares the loop worker a second look-up in the page cache where tmpfs has it
    // (6.6 and later); older kernels fall back by themselves or say EINVAL.
    match set(device, backing, info, READ_ONLY | AUTOCLEAR | DIRECT_IO) {
        Err(Errno::INVAL) => set(device, backing, info, READ_ONLY | AUTOCLEAR),
        other => other,
    }
}

fn set(device: &File, backing: &File, mut info: LoopInfo64, flags: u32) -> Result<(), Errno> {
    info.flags = flags;
    let config = LoopConfig {
        // A descriptor is never negative.
        fd: backing.as_raw_fd() as u32,
        block_size: 0,
        info,
        reserved: [0; 8],
    };
    // SAFETY: LOOP_CONFIGURE reads a `struct loop_config`, whose layout LoopConfig has (asserted
    // below), and writes nothing.
    unsafe { rustix::ioctl::ioctl(device, Setter::<LOOP_CONFIGURE, LoopConfig>::new(config)) }
}

// Numbers and layouts from include/uapi/linux/loop.h.
const LOOP_CONFIGURE: Opcode = 0x4C0A;
const LOOP_CTL_GET_FREE: Opcode = 0x4C82;
const READ_ONLY: u32 = 1;
const AUTOCLEAR: u32 = 4;
const DIRECT_IO: u32 = 16;

#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

impl LoopInfo64 {
    const ZERO: LoopInfo64 = LoopInfo64 {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        sizelimit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
}

#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo64>() == 232 && size_of::<LoopConfig>() == 304);

struct GetFree;

// SAFETY: the opcode takes no argument, and the result is the return value alone.
unsafe impl Ioctl for GetFree {
    type Output = u32;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        LOOP_CTL_GET_FREE
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<u32> {
        // Negative results have become errors before this is called.
        u32::try_from(out).map_err(|_| Errno::INVAL)
    }
}
