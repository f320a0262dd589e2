//! Networks in CIDR notation (RFC 4632, 3.1; RFC 4291, 2.3): `10.0.0.0/8`, `2001:db8::/32`, or one address.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

/// Why a text is not a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    #[error(
        "`{0}` is not a network; write an address, or one with its prefix such as `10.0.0.0/8`"
    )]
    Form(String),
    #[error("the prefix of `{text}` is longer than {bits} bits")]
    Prefix { text: String, bits: u8 },
    /// Somebody meant one address or another network: neither is guessed.
    #[error("`{text}` has bits behind its prefix; the network is `{network}`")]
    HostBits { text: String, network: Network },
}

/// All addresses that begin with the same bits. An IPv4 address that is mapped into IPv6 is the IPv4 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// Whether an address is one of the network's.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let mask = mask(self.prefix, 32) as u32;
                own.to_bits() & mask == other.to_bits() & mask
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let mask = mask(self.prefix, 128);
                own.to_bits() & mask == other.to_bits() & mask
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }

    fn masked(address: IpAddr, prefix: u8) -> Self {
        let address = match address {
            IpAddr::V4(own) => IpAddr::V4((own.to_bits() & mask(prefix, 32) as u32).into()),
            IpAddr::V6(own) => IpAddr::V6((own.to_bits() & mask(prefix, 128)).into()),
        };
        Self { address, prefix }
    }
}

/// The first `prefix` of `bits` bits.
fn mask(prefix: u8, bits: u8) -> u128 {
    let all = u128::MAX >> (128 - u32::from(bits));
    all & !all.checked_shr(u32::from(prefix)).unwrap_or(0)
}

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        let address = address.to_canonical();
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        Self { address, prefix }
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let form = || NetworkError::Form(text.to_owned());
        let Some((address, prefix)) = text.split_once('/') else {
            let address: IpAddr = text.parse().map_err(|_| form())?;
            return Ok(address.into());
        };
        let address: IpAddr = address.parse().map_err(|_| form())?;
        let is_number = !prefix.is_empty() && prefix.bytes().all(|byte| byte.is_ascii_digit());
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let too_long = || NetworkError::Prefix {
            text: text.to_owned(),
            bits,
        };
        if !is_number {
            return Err(form());
        }
        let prefix: u8 = prefix.parse().map_err(|_| too_long())?;
        if prefix > bits {
            return Err(too_long());
        }
        let network = Self::masked(address, prefix);
        if network.address != address {
            let text = text.to_owned();
            return Err(NetworkError::HostBits { text, network });
        }
        Ok(network)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.to_string()
    }
}

impl TryFrom<String> for Network {
    type Error = NetworkError;

    fn try_from(text: String) -> Result<Self, NetworkError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_exactly_the_addresses_that_begin_alike() {
        for (network, address, expected) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.0.0.0/8", "::ffff:10.1.2.3", true),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("::/0", "2001:db8::1", true),
            ("::/0", "10.0.0.1", false),
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7/32", "192.0.2.6", false),
            ("2001:db8::/33", "2001:db8:7fff::1", true),
            ("2001:db8::/33", "2001:db8:8000::1", false),
            ("::ffff:192.0.2.7", "192.0.2.7", true),
            ("2001:db8::1/128", "2001:db8::1", true),
        ] {
            let parsed: Network = network.parse().expect("a network");
            let address = address.parse().expect("an address");
            assert_eq!(parsed.contains(address), expected, "{network} {address}");
        }
    }

    #[test]
    fn nothing_is_guessed() {
        for (text, expected) in [
            (
                "10.0.0.1/8",
                "`10.0.0.1/8` has bits behind its prefix; the network is `10.0.0.0/8`",
            ),
            (
                "10.0.0.0/33",
                "the prefix of `10.0.0.0/33` is longer than 32 bits",
            ),
            ("::/999", "the prefix of `::/999` is longer than 128 bits"),
            (
                "10.0.0.0/",
                "`10.0.0.0/` is not a network; write an address, or one with its prefix such as `10.0.0.0/8`",
            ),
            (
                "office",
                "`office` is not a network; write an address, or one with its prefix such as `10.0.0.0/8`",
            ),
            (
                "10.0.0.0/+8",
                "`10.0.0.0/+8` is not a network; write an address, or one with its prefix such as `10.0.0.0/8`",
            ),
        ] {
            let error = text.parse::<Network>().expect_err("no network");
            assert_eq!(error.to_string(), expected);
        }
        let network: Network = "2001:db8::/32".parse().expect("a network");
        let json = serde_json::to_string(&network).expect("json");
        assert_eq!(json, "\"2001:db8::/32\"");
        assert_eq!(
            serde_json::from_str::<Network>(&json).expect("a network"),
            network
        );
    }
}
