//! CRC-64 as Redis uses it: Jones' polynomial 0xad93d23594c935a9, bits reflected, start 0, no final xor.
//! It ends an RDB file and every DUMP payload. Source: `crc64.c` of Redis, whose check value the test has.

/// The polynomial with its bits reflected.
const POLYNOMIAL: u64 = 0x95ac_9329_ac4b_c9b5;

/// `TABLES[k][b]`: what byte `b` adds when `k` more bytes follow in the same step. Sixteen of them
/// (32 KiB, one first-level cache) let a step take 16 bytes with loads that don't wait for each other.
static TABLES: [[u64; 256]; 16] = tables();

const fn tables() -> [[u64; 256]; 16] {
    let mut tables = [[0u64; 256]; 16];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u64;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut later = 1;
    while later < 16 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[later - 1][byte];
            tables[later][byte] = (before >> 8) ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        later += 1;
    }
    tables
}

/// Goes on with checksum `crc` (0 at the start) over `bytes`; `crc64(crc64(0, a), b)` is that of `a` and `b` joined.
pub fn crc64(crc: u64, bytes: &[u8]) -> u64 {
    let mut crc = crc;
    let (blocks, rest) = bytes.as_chunks::<16>();
    for block in blocks {
        let (low, high) = block.split_at(8);
        let low = crc ^ low.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
        let high = high.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
        crc = 0;
        for byte in 0..8 {
            crc ^= TABLES[15 - byte][(low >> (8 * byte) & 0xff) as usize];
            crc ^= TABLES[7 - byte][(high >> (8 * byte) & 0xff) as usize];
        }
    }
    for &byte in rest {
        crc = (crc >> 8) ^ TABLES[0][((crc ^ u64::from(byte)) & 0xff) as usize];
    }
    crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_value_is_that_of_redis() {
        assert_eq!(crc64(0, b"123456789"), 0xe9c6_d914_c4b8_d9ca);
        assert_eq!(crc64(0, b""), 0);
    }

    #[test]
    fn any_cut_gives_the_same_sum() {
        let bytes: Vec<u8> = (0..1000u32).map(|i| (i * 31 % 251) as u8).collect();
        let bytewise = bytes.iter().fold(0, |crc, byte| crc64(crc, &[*byte]));
        for cut in [0, 1, 7, 8, 15, 16, 17, 500, 1000] {
            assert_eq!(crc64(crc64(0, &bytes[..cut]), &bytes[cut..]), bytewise);
        }
    }
}
