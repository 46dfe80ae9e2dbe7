//! Keys: what a backup host holds, what a restore needs, and how they are kept.

/// `N` random bytes from the operating system.
///
/// # Panics
/// If the operating system has no randomness to give; nothing safe can be done then.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}
