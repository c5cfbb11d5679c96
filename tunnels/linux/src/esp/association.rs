//! One direction of one pair: a key and a number to seal with, or a key and a replay window to open with.
//!
//! Any number of threads may seal and open at once: a number is drawn by one atomic addition, so no two datagrams share a
//! nonce, whoever seals them.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::aead::{AES_128_GCM, AES_192_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use hawser_tunnels::{EspKey, SALT, Sa};

use super::{ALIGNMENT, DUMMY, HEADER, IPV4, IPV6, TAG, TRAILER};
use crate::noise::REJECT_AFTER_MESSAGES;
use crate::noise::primitives::Forged;
use crate::noise::window::{SIZE, Window};

/// Why a datagram does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unopened {
    Forged,
    /// Authentic, and yet no packet of tunnel mode.
    Malformed,
}

impl From<aws_lc_rs::error::Unspecified> for Unopened {
    fn from(_: aws_lc_rs::error::Unspecified) -> Self {
        Self::Forged
    }
}

/// A key of AES and its salt.
struct Cipher {
    key: LessSafeKey,
    salt: [u8; SALT],
}

impl Cipher {
    fn new(key: &EspKey) -> Result<Self, Forged> {
        let algorithm = match key.aes().len() {
            16 => &AES_128_GCM,
            24 => &AES_192_GCM,
            _ => &AES_256_GCM,
        };
        Ok(Self { key: LessSafeKey::new(UnboundKey::new(algorithm, key.aes())?), salt: key.salt() })
    }

    /// RFC 4106 §4.
    fn nonce(&self, iv: &[u8; 8]) -> Nonce {
        let mut nonce = [0; 12];
        nonce[..SALT].copy_from_slice(&self.salt);
        nonce[SALT..].copy_from_slice(iv);
        Nonce::assume_unique_for_key(nonce)
    }
}

/// What is authenticated and not encrypted: SPI and the whole sequence number (RFC 4106 §5).
fn bound(spi: u32, sequence: u64) -> Aad<[u8; 12]> {
    let mut bound = [0; 12];
    bound[..4].copy_from_slice(&spi.to_be_bytes());
    bound[4..].copy_from_slice(&sequence.to_be_bytes());
    Aad::from(bound)
}

/// What this end sends by.
pub(crate) struct Outbound {
    sa: Sa,
    cipher: Cipher,
    /// The last number that was drawn; the first is one (RFC 4303 §2.2).
    sequence: AtomicU64,
}

impl Outbound {
    /// Goes on behind `sequence`.
    pub(crate) fn new(sa: Sa, sequence: u64) -> Result<Self, Forged> {
        Ok(Self { cipher: Cipher::new(&sa.key)?, sa, sequence: AtomicU64::new(sequence) })
    }

    pub(crate) fn sa(&self) -> &Sa {
        &self.sa
    }

    pub(crate) fn sequence(&self) -> u64 {
        self.sequence.load(Ordering::Acquire)
    }

    /// Has no numbers left.
    pub(crate) fn is_over(&self) -> bool {
        self.sequence.load(Ordering::Relaxed) >= REJECT_AFTER_MESSAGES
    }

    /// Seals in place the packet of `length` behind [`HEADER`], or none for a dummy; returns the datagram's length. Fails
    /// when there are no numbers left. There must be room for [`super::OVERHEAD`].
    pub(crate) fn seal(&self, message: &mut [u8], length: usize) -> Result<usize, Forged> {
        let padded = (length + TRAILER).next_multiple_of(ALIGNMENT);
        let total = HEADER + padded + TAG;
        let message = message.get_mut(..total).ok_or(Forged)?;
        let (header, rest) = message.split_first_chunk_mut::<HEADER>().ok_or(Forged)?;
        let (text, tag) = rest.split_last_chunk_mut::<TAG>().ok_or(Forged)?;
        let next = if length == 0 { DUMMY } else { next_header(text).ok_or(Forged)? };
        let padding = padded - TRAILER - length;
        for (octet, number) in text[length..].iter_mut().zip(1..=padding as u8) {
            *octet = number;
        }
        text[padded - 2..].copy_from_slice(&[padding as u8, next]);
        // Looked at before it is drawn: threads that are past this at once are fewer than the numbers in reserve.
        if self.is_over() {
            return Err(Forged);
        }
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed) + 1;
        let iv = sequence.to_be_bytes();
        header[..4].copy_from_slice(&self.sa.spi.to_be_bytes());
        header[4..8].copy_from_slice(&iv[4..]);
        header[8..].copy_from_slice(&iv);
        let bound = bound(self.sa.spi, sequence);
        let made = self.cipher.key.seal_in_place_separate_tag(self.cipher.nonce(&iv), bound, text)?;
        tag.copy_from_slice(made.as_ref());
        Ok(total)
    }
}

/// What this end receives by.
pub(crate) struct Inbound {
    sa: Sa,
    cipher: Cipher,
    /// The newest number that proved authentic. Threads may see it late, by less than the window is wide.
    newest: AtomicU64,
    window: Mutex<Window>,
}

impl Inbound {
    /// Takes nothing up to `newest`, which is zero for an association that has not been used.
    pub(crate) fn new(sa: Sa, newest: u64) -> Result<Self, Forged> {
        let window = if newest == 0 { Window::new() } else { Window::after(newest) };
        Self::with_window(sa, newest, window)
    }

    /// As a predecessor had it.
    pub(crate) fn with_window(sa: Sa, newest: u64, window: Window) -> Result<Self, Forged> {
        let cipher = Cipher::new(&sa.key)?;
        Ok(Self { cipher, sa, newest: AtomicU64::new(newest), window: Mutex::new(window) })
    }

    pub(crate) fn sa(&self) -> &Sa {
        &self.sa
    }

    pub(crate) fn newest(&self) -> u64 {
        self.newest.load(Ordering::Acquire)
    }

    /// For a successor.
    pub(crate) fn window(&self) -> Vec<u64> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner).export().collect()
    }

    /// Opens a datagram in place; gives its number, which [`Inbound::admit`] has yet to see, and where the packet stands:
    /// nowhere in a dummy. Behind the packet may be more than it says that it is long (RFC 4303 §2.7).
    pub(crate) fn open(&self, datagram: &mut [u8]) -> Result<(u64, Range<usize>), Unopened> {
        let (sequence, text) = self.decrypt(datagram)?;
        let [rest @ .., padding, next] = text else { return Err(Unopened::Malformed) };
        let length = rest.len().checked_sub(usize::from(*padding)).ok_or(Unopened::Malformed)?;
        // §2.4: they are numbered, from one on.
        if !rest[length..].iter().zip(1..=u8::MAX).all(|(octet, number)| *octet == number) {
            return Err(Unopened::Malformed);
        }
        if *next == DUMMY {
            return Ok((sequence, HEADER..HEADER));
        }
        match next_header(&rest[..length]) {
            Some(family) if family == *next => Ok((sequence, HEADER..HEADER + length)),
            _ => Err(Unopened::Malformed),
        }
    }

    /// The number, and what was encrypted.
    pub(super) fn decrypt<'a>(&self, datagram: &'a mut [u8]) -> Result<(u64, &'a [u8]), Unopened> {
        let (header, rest) = datagram.split_first_chunk_mut::<HEADER>().ok_or(Unopened::Forged)?;
        let (text, tag) = rest.split_last_chunk_mut::<TAG>().ok_or(Unopened::Forged)?;
        if text.len() < TRAILER {
            return Err(Unopened::Forged);
        }
        let [_, _, _, _, a, b, c, d, iv @ ..] = *header;
        let low = u32::from_be_bytes([a, b, c, d]);
        let sequence = whole(low, self.newest.load(Ordering::Relaxed)).ok_or(Unopened::Forged)?;
        let bound = bound(self.sa.spi, sequence);
        let nonce = self.cipher.nonce(&iv);
        self.cipher.key.open_in_place_separate_tag(nonce, bound, tag, text)?;
        Ok((sequence, text))
    }

    /// Calls `each` for each of the numbers, which have proved authentic, in order: whether it is here for the first time.
    /// One lock for all of them.
    pub(crate) fn admit<T>(&self, items: &[T], number: impl Fn(&T) -> u64, mut each: impl FnMut(&T, bool)) {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let mut newest = 0;
        for item in items {
            newest = newest.max(number(item));
            each(item, window.admit(number(item)));
        }
        self.newest.fetch_max(newest, Ordering::Relaxed);
    }
}

/// By the version of the packet.
fn next_header(packet: &[u8]) -> Option<u8> {
    match packet.first()? >> 4 {
        4 => Some(IPV4),
        6 => Some(IPV6),
        _ => None,
    }
}

/// The number whose lower half was sent: the one that is in the window around the newest one, or ahead of it (RFC 4303
/// appendix A2.2). None for one before the first.
pub(super) fn whole(low: u32, newest: u64) -> Option<u64> {
    let bottom = (newest as u32).wrapping_sub(SIZE as u32 - 1);
    let high = newest >> 32;
    let high = if u64::from(newest as u32) >= SIZE - 1 {
        // The window lies within one period of the lower half.
        if low >= bottom {
            Some(high)
        } else {
            high.checked_add(1).filter(|high| *high <= u64::from(u32::MAX))
        }
    } else if low >= bottom {
        high.checked_sub(1)
    } else {
        Some(high)
    };
    high.map(|high| high << 32 | u64::from(low)).filter(|sequence| *sequence > 0)
}
