//! Recovery shares: Shamir's scheme in Vault's layout and field.
//!
//! In: a secret, or shares. Out: shares `y… | x` (one byte longer than the secret), or the secret. One share of one is
//! the secret itself, as in Vault.
//!
//! The arithmetic is `blahaj`'s, which works in GF(2^8) modulo 0x11d; Vault works modulo 0x11b. The two fields are
//! isomorphic, so secrets and shares are mapped across: the map sends 2 (a generator there) to 3 (a generator here).
//!
//! Invariants
//! - Every share has its own random x, never 0 (a share at 0 would be the secret).
//! - A wrong set of shares is not told from a right one here: compare the recovered key with the wrapped copy.

use blahaj::{Share, Sharks};
use rand::seq::SliceRandom;
use zeroize::Zeroizing;

use crate::secret::SecretBytes;

/// Why shares could not be made or combined.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShareError {
    /// `1 ≤ threshold ≤ shares ≤ 255`, and threshold 1 only with one share.
    #[error("the threshold must be between 2 and the number of shares, or both 1")]
    Threshold,
    /// There is nothing to share.
    #[error("the secret is empty")]
    EmptySecret,
    /// Combining needs exactly the threshold of shares.
    #[error("{needed} shares are needed, {given} were given")]
    Count {
        /// The threshold.
        needed: u8,
        /// What was given.
        given: usize,
    },
    /// A share is too short, of another length than the others, or has x = 0.
    #[error("a share is malformed")]
    Malformed,
    /// Two shares have the same x.
    #[error("a share was given twice")]
    Duplicate,
}

/// Splits `secret` into `shares` shares, any `threshold` of which give it back.
///
/// # Errors
/// `Threshold` and `EmptySecret` for parameters that make no sense.
pub fn split(
    secret: &[u8],
    shares: u8,
    threshold: u8,
) -> Result<Vec<Zeroizing<Vec<u8>>>, ShareError> {
    check_threshold(shares, threshold)?;
    if secret.is_empty() {
        return Err(ShareError::EmptySecret);
    }
    if shares == 1 {
        return Ok(vec![Zeroizing::new(secret.to_vec())]);
    }
    let field = Field::new();
    let mapped = Zeroizing::new(
        secret
            .iter()
            .map(|y| field.mapped_in(*y))
            .collect::<Vec<_>>(),
    );
    // All 255 points are computed and a random choice is kept, so that x is random as in Vault.
    let mut points: Vec<Share> = Sharks(threshold).dealer(&mapped).collect();
    let (chosen, _) = points.partial_shuffle(&mut rand::rng(), usize::from(shares));
    Ok(chosen
        .iter()
        .map(|share| {
            let mut bytes = Zeroizing::new(Vec::<u8>::from(share));
            for byte in bytes.iter_mut() {
                *byte = field.mapped_out(*byte);
            }
            // blahaj puts x first, Vault last.
            bytes.rotate_left(1);
            bytes
        })
        .collect())
}

/// Gives back the secret of exactly `threshold` shares.
///
/// # Errors
/// One for each way a set of shares can be unusable. Shares of another secret are not noticed.
pub fn combine<S: AsRef<[u8]>>(shares: &[S], threshold: u8) -> Result<SecretBytes, ShareError> {
    if threshold == 0 {
        return Err(ShareError::Threshold);
    }
    if shares.len() != usize::from(threshold) {
        return Err(ShareError::Count {
            needed: threshold,
            given: shares.len(),
        });
    }
    let len = shares.first().map_or(0, |share| share.as_ref().len());
    if len == 0 || shares.iter().any(|share| share.as_ref().len() != len) {
        return Err(ShareError::Malformed);
    }
    if let [only] = shares {
        return Ok(only.as_ref().to_vec().into());
    }
    let field = Field::new();
    let mut seen = [false; 256];
    let mut points = Vec::with_capacity(shares.len());
    for share in shares {
        let (Some((&x, y)), true) = (share.as_ref().split_last(), len > 1) else {
            return Err(ShareError::Malformed);
        };
        match seen.get_mut(usize::from(x)) {
            _ if x == 0 => return Err(ShareError::Malformed),
            Some(seen) if !*seen => *seen = true,
            _ => return Err(ShareError::Duplicate),
        }
        let mut point = Zeroizing::new(Vec::with_capacity(len));
        point.push(field.mapped_in(x));
        point.extend(y.iter().map(|y| field.mapped_in(*y)));
        points.push(Share::try_from(point.as_slice()).map_err(|_| ShareError::Malformed)?);
    }
    let mut secret = Sharks(threshold)
        .recover(&points)
        .map(Zeroizing::new)
        .map_err(|_| ShareError::Malformed)?;
    for byte in secret.iter_mut() {
        *byte = field.mapped_out(*byte);
    }
    Ok(secret.into())
}

fn check_threshold(shares: u8, threshold: u8) -> Result<(), ShareError> {
    match (shares, threshold) {
        (1, 1) => Ok(()),
        (shares, 2..) if threshold <= shares => Ok(()),
        _ => Err(ShareError::Threshold),
    }
}

/// The isomorphism between the two fields, as tables.
struct Field {
    to_vault: [u8; 256],
    from_vault: [u8; 256],
}

impl Field {
    fn new() -> Self {
        let mut field = Self {
            to_vault: [0; 256],
            from_vault: [0; 256],
        };
        let (mut there, mut here) = (1_u8, 1_u8);
        for _ in 0..255 {
            field.pair(there, here);
            there = double(there, 0x1d);
            // Times 3 is times 2 plus once.
            here ^= double(here, 0x1b);
        }
        field
    }

    fn pair(&mut self, there: u8, here: u8) {
        if let (Some(to), Some(from)) = (
            self.to_vault.get_mut(usize::from(there)),
            self.from_vault.get_mut(usize::from(here)),
        ) {
            *to = here;
            *from = there;
        }
    }

    #[expect(clippy::indexing_slicing, reason = "a u8 indexes 256 entries")]
    fn mapped_out(&self, byte: u8) -> u8 {
        self.to_vault[usize::from(byte)]
    }

    #[expect(clippy::indexing_slicing, reason = "a u8 indexes 256 entries")]
    fn mapped_in(&self, byte: u8) -> u8 {
        self.from_vault[usize::from(byte)]
    }
}

/// Times 2 in GF(2^8) modulo 0x100 + `reduce`.
fn double(byte: u8, reduce: u8) -> u8 {
    (byte << 1) ^ if byte & 0x80 == 0 { 0 } else { reduce }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Made once with pyshamir 1.1.0, whose field and layout are Vault's; the secret is the bytes 100 to 131.
    const THREE_OF_FIVE: [&str; 5] = [
        "edd44875e5ac3114ae710a51ffba803a175d37d7e9efd3d8cbd87627836c0f8704",
        "0e8e62dbd8cd9124567cda24c481cf8b67cc54d12d0cc04e83a7ced08e7ab904df",
        "639e7ae919b4fedde008ffa56bcccd364d31e76f23075d61fcc1864a9c879199f1",
        "06806457f20aa9908382ec62070771f2a131bd66094d11465f21738d398a7fff99",
        "6725cbff3cbd9ee76c0c8594e9440fa8a8385e8ac4296e564c3d6c20b2bc13cdd2",
    ];
    const TWO_OF_THREE: [&str; 3] = [
        "6baa0a8ce11a47d668463c1b145b155a30b32cdc8783345ae13b68967afe8a3974",
        "245559420febb1e49838305ebc19f95c598bdb8b549cdea7122a0d20650471bf31",
        "5fbd086c5116cbabeb85223e0bfea0555bdf2fd4de3f8e48e89c1dbac66c976d51",
    ];
    const SEVEN_OF_SEVEN: [&str; 7] = [
        "3591724cada1728f232ccd15f14bcd3546a82b83548873ebbcaa97637f2ce47be5",
        "a379ac4642845419b9b47ac7ade12b6e011286023a8706aa4e855fd1f4ebcdbe31",
        "992159761dd01ddbb8330fcfb83ed63d0fc8e42e4bf9b4dab6ba668a7bf51049b9",
        "bcc64102a5bafcff909ec03a649dadc317e0daa1a55c0ef8c92610ac73c5d3f2d9",
        "ffab2e4ce86c64d40891b2a674cd44b5ecccc27bfbfbb0c057ae646f25831d46fd",
        "be78b6656d75da41ff29c9c9958b01fb8367364b3a9335a34ccb13bd2fb1be9b35",
        "001b63de83c49dcce73d91a0aa3ed88eb118909f1e8730085b15357b2e8ea261e3",
    ];

    fn decode(shares: &[&str]) -> Vec<Vec<u8>> {
        shares
            .iter()
            .map(|share| hex::decode(share).unwrap())
            .collect()
    }

    #[test]
    fn combines_vault_shares() {
        let secret: Vec<u8> = (100..132).collect();
        let five = decode(&THREE_OF_FIVE);
        for pick in [[0, 1, 2], [4, 2, 0], [3, 1, 4], [2, 3, 4]] {
            let chosen = pick.map(|at| &five[at]);
            assert_eq!(&*combine(&chosen, 3).unwrap(), &secret, "{pick:?}");
        }
        let three = decode(&TWO_OF_THREE);
        assert_eq!(&*combine(&three[1..], 2).unwrap(), &secret);
        assert_eq!(&*combine(&decode(&SEVEN_OF_SEVEN), 7).unwrap(), &secret);
        let mixed = [&five[0], &five[1], &three[0]];
        assert_ne!(&*combine(&mixed, 3).unwrap(), &secret);
    }

    /// Multiplication modulo 0x100 + `reduce`, the slow way.
    fn multiply(mut a: u8, mut b: u8, reduce: u8) -> u8 {
        let mut product = 0;
        while b > 0 {
            if b & 1 == 1 {
                product ^= a;
            }
            a = double(a, reduce);
            b >>= 1;
        }
        product
    }

    #[test]
    fn the_map_is_an_isomorphism() {
        let field = Field::new();
        for a in 0..=255_u8 {
            assert_eq!(field.mapped_in(field.mapped_out(a)), a);
            for b in 0..=255_u8 {
                let (fa, fb) = (field.mapped_out(a), field.mapped_out(b));
                assert_eq!(field.mapped_out(a ^ b), fa ^ fb, "sum of {a} and {b}");
                let product = field.mapped_out(multiply(a, b, 0x1d));
                assert_eq!(product, multiply(fa, fb, 0x1b), "product of {a} and {b}");
            }
        }
    }

    #[test]
    fn parameters_are_checked() {
        for (shares, threshold, ok) in [
            (1, 1, true),
            (2, 2, true),
            (5, 3, true),
            (255, 255, true),
            (255, 2, true),
            (2, 1, false),
            (0, 0, false),
            (1, 0, false),
            (1, 2, false),
            (3, 4, false),
        ] {
            assert_eq!(
                split(b"s", shares, threshold).is_ok(),
                ok,
                "{threshold} of {shares}"
            );
        }
        assert_eq!(split(b"", 3, 2).unwrap_err(), ShareError::EmptySecret);
        let one = split(b"abc", 1, 1).unwrap();
        assert_eq!(one[0].as_slice(), b"abc");
        assert_eq!(&*combine(&one, 1).unwrap(), b"abc");
    }

    #[test]
    fn unusable_shares_are_refused() {
        let shares = decode(&THREE_OF_FIVE);
        let zero = {
            let mut share = shares[0].clone();
            *share.last_mut().unwrap() = 0;
            share
        };
        let (a, b, c) = (&shares[0], &shares[1], &shares[2]);
        let short = &c[1..].to_vec();
        let empty = &Vec::new();
        let (one, two) = (&vec![1], &vec![2]);
        fn no(given: &[&Vec<u8>], threshold: u8) -> ShareError {
            combine(given, threshold).map(|_| ()).unwrap_err()
        }
        assert_eq!(
            no(&[a, b], 3),
            ShareError::Count {
                needed: 3,
                given: 2
            }
        );
        assert_eq!(
            no(&[a, b, c], 2),
            ShareError::Count {
                needed: 2,
                given: 3
            }
        );
        assert_eq!(no(&[a, b, a], 3), ShareError::Duplicate);
        assert_eq!(no(&[a, b, &zero], 3), ShareError::Malformed);
        assert_eq!(no(&[a, b, short], 3), ShareError::Malformed);
        assert_eq!(no(&[empty, empty, empty], 3), ShareError::Malformed);
        assert_eq!(no(&[one, two], 2), ShareError::Malformed);
        assert_eq!(no(&[], 0), ShareError::Threshold);
    }

    #[test]
    fn x_is_random_and_never_zero() {
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..40 {
            for share in split(b"secret", 5, 3).unwrap() {
                assert_eq!(share.len(), 7);
                let x = *share.last().unwrap();
                assert_ne!(x, 0);
                seen.insert(x);
            }
        }
        assert!(seen.len() > 80, "only {} different x", seen.len());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_shares_panic(
            shares in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..6), 0..6),
            threshold in 0_u8..7,
        ) {
            if let Ok(secret) = combine(&shares, threshold) {
                prop_assert_eq!(shares.len(), usize::from(threshold));
                prop_assert!(!secret.is_empty());
            }
        }

        #[test]
        fn any_threshold_of_shares_gives_the_secret(
            secret in proptest::collection::vec(any::<u8>(), 1..40),
            (n, k) in (2_u8..=10).prop_flat_map(|n| (Just(n), 2..=n)),
        ) {
            let shares = split(&secret, n, k).unwrap();
            let k_usize = usize::from(k);
            prop_assert_eq!(&*combine(&shares[..k_usize], k).unwrap(), &secret[..]);
            prop_assert_eq!(&*combine(&shares[shares.len() - k_usize..], k).unwrap(), &secret[..]);
        }
    }
}
