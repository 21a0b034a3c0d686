//! What a cubin says of its functions' resources: an ELF file with one section of attributes for all.

/// What a function takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resources {
    /// Its name.
    pub function: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of a thread's stack: spilled registers and arrays that are indexed at run time. 0 is what kernels want.
    pub stack_bytes: u32,
}

const FRAME_SIZE: u8 = 0x11;
const REGISTER_COUNT: u8 = 0x2f;
/// The attribute's value follows, with its length.
const SIZED_VALUE: u8 = 0x04;

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes: [u8; N] = bytes.get(at..at.checked_add(N)?)?.try_into().ok()?;
    Some(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
}

/// A section's bytes: where its header says.
fn section(elf: &[u8], header: usize) -> Option<&[u8]> {
    let offset = usize::try_from(number::<8>(elf, header.checked_add(24)?)?).ok()?;
    let size = usize::try_from(number::<8>(elf, header.checked_add(32)?)?).ok()?;
    elf.get(offset..offset.checked_add(size)?)
}

fn text(strings: &[u8], at: usize) -> Option<String> {
    let bytes = strings.get(at..)?;
    let end = bytes.iter().position(|&byte| byte == 0)?;
    Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
}

/// The resources of each function of a cubin, by name; none if it is no 64-bit ELF file with them.
#[must_use]
pub fn resources(cubin: &[u8]) -> Option<Vec<Resources>> {
    if !cubin.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let headers = usize::try_from(number::<8>(cubin, 40)?).ok()?;
    let header_size = usize::try_from(number::<2>(cubin, 58)?).ok()?;
    let count = usize::try_from(number::<2>(cubin, 60)?).ok()?;
    let names_index = usize::try_from(number::<2>(cubin, 62)?).ok()?;
    let header = |index: usize| headers.saturating_add(index.saturating_mul(header_size));
    let names = section(cubin, header(names_index))?;
    let named = |wanted: &str| {
        (0..count).find(|&index| {
            let name =
                number::<4>(cubin, header(index)).and_then(|at| text(names, usize::try_from(at).ok()?));
            name.as_deref() == Some(wanted)
        })
    };
    let symbols = section(cubin, header(named(".symtab")?))?;
    let strings = section(cubin, header(named(".strtab")?))?;
    let attributes = section(cubin, header(named(".nv.info")?))?;

    let mut found: std::collections::BTreeMap<String, (Option<u32>, Option<u32>)> = Default::default();
    let mut at = 0;
    while at + 4 <= attributes.len() {
        let (form, attribute) = (attributes[at], attributes[at + 1]);
        let size = usize::try_from(number::<2>(attributes, at + 2)?).ok()?;
        at += 4;
        if form != SIZED_VALUE {
            continue;
        }
        if size == 8 && matches!(attribute, FRAME_SIZE | REGISTER_COUNT) {
            let symbol = usize::try_from(number::<4>(attributes, at)?).ok()?;
            let value = u32::try_from(number::<4>(attributes, at + 4)?).ok()?;
            // A symbol is 24 bytes, of which the first four say where its name is.
            let name = usize::try_from(number::<4>(symbols, symbol * 24)?).ok()?;
            let entry = found.entry(text(strings, name)?).or_default();
            if attribute == FRAME_SIZE {
                entry.1 = Some(value);
            } else {
                entry.0 = Some(value);
            }
        }
        at += size;
    }
    let of = |(function, (registers, stack)): (String, (Option<u32>, Option<u32>))| {
        Some(Resources { function, registers: registers?, stack_bytes: stack? })
    };
    Some(found.into_iter().filter_map(of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_cubin_has_no_resources() {
        assert_eq!(resources(b""), None);
        assert_eq!(resources(b"\x7fELF\x02\x01 and nothing more"), None);
        let mut lying = vec![0xff; 64];
        lying[..6].copy_from_slice(b"\x7fELF\x02\x01");
        assert_eq!(resources(&lying), None);
    }
}
