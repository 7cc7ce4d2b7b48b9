//! A loop device over the RAM image, by its ioctls: no `losetup` in the initrd.
//!
//! The device is read-only and clears itself when its last user goes away, so an unmount, or
//! dropping [`LoopDevice`] before the mount, leaves nothing behind.
//!
//! Since Linux 5.8 one call sets a device up (LOOP_CONFIGURE). Before, it takes two, between which the
//! device does not clear itself yet.

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
    for flags in [READ_ONLY | AUTOCLEAR | DIRECT_IO, READ_ONLY | AUTOCLEAR] {
        match set(device, backing, info, flags) {
            // What a kernel says to a flag, or to a call, that it does not know.
            Err(Errno::INVAL | Errno::NOTTY | Errno::NOSYS | Errno::OPNOTSUPP) => {}
            other => return other,
        }
    }
    set_in_two_steps(device, backing, info)
}

/// As it was before Linux 5.8. That the device is read-only follows from how both files were opened.
fn set_in_two_steps(device: &File, backing: &File, mut info: LoopInfo64) -> Result<(), Errno> {
    info.flags = READ_ONLY | AUTOCLEAR;
    // SAFETY: LOOP_SET_FD takes a descriptor as a number, and writes nothing.
    unsafe {
        rustix::ioctl::ioctl(
            device,
            Numbered::<LOOP_SET_FD>(backing.as_raw_fd() as usize),
        )
    }?;
    let mut tries = 0;
    let result = loop {
        // SAFETY: LOOP_SET_STATUS64 reads a `struct loop_info64`, whose layout LoopInfo64 has (asserted
        // below), and writes nothing.
        let set = unsafe {
            rustix::ioctl::ioctl(device, Setter::<LOOP_SET_STATUS64, LoopInfo64>::new(info))
        };
        match set {
            // The page cache of the device's last user is still being written.
            Err(Errno::AGAIN) if tries < STATUS_TRIES => {
                tries += 1;
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            other => break other,
        }
    };
    if result.is_err() {
        // It would not clear itself. The error that matters is the one being returned.
        // SAFETY: LOOP_CLR_FD takes no argument.
        let _ = unsafe { rustix::ioctl::ioctl(device, Numbered::<LOOP_CLR_FD>(0)) };
    }
    result
}

/// How often a device that is busy for a moment is asked again: a second in all.
const STATUS_TRIES: u32 = 100;

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
const LOOP_SET_FD: Opcode = 0x4C00;
const LOOP_CLR_FD: Opcode = 0x4C01;
const LOOP_SET_STATUS64: Opcode = 0x4C04;
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

/// A call whose argument is a number.
struct Numbered<const OPCODE: Opcode>(usize);

// SAFETY: the argument is a number and no pointer: nothing is read or written through it.
unsafe impl<const OPCODE: Opcode> Ioctl for Numbered<OPCODE> {
    type Output = ();

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        OPCODE
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::without_provenance_mut(self.0)
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

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
