//! Secrets as files: a folder of the instance alone, in memory where the run folder is.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown},
    path::Path,
};

use landfast_types::{Protection, ProtectionPart, ProtectionState};

use crate::wire::SecretsOrder;

/// What a file system in memory says it is (statfs(2)): tmpfs, ramfs.
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// Makes the folder and the files. It must not be there: its name is random.
pub(super) fn write(order: &SecretsOrder, user: Option<u32>) -> io::Result<Protection> {
    if let Some(parent) = order.folder.parent() {
        // Passed through by every user, listed by none.
        fs::create_dir_all(parent)?;
        fs::set_permissions(parent, Permissions::from_mode(0o711))?;
    }
    DirBuilder::new().mode(0o700).create(&order.folder)?;
    for (name, value) in &order.files {
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o400)
            .open(order.folder.join(name))?;
        file.write_all(value.reveal().as_bytes())?;
        fchown(&file, user, user)?;
    }
    if user.is_some() {
        // Whoever removes it is root then; without a user of its own the instance's user is whoever removes it.
        let folder = File::open(&order.folder)?;
        folder.set_permissions(Permissions::from_mode(0o500))?;
        fchown(&folder, user, user)?;
    }
    Ok(protection(&order.folder, user))
}

fn protection(folder: &Path, user: Option<u32>) -> Protection {
    let whose = if user.is_some() {
        "its user's alone"
    } else {
        "those of the server's user"
    };
    let is_in_memory =
        rustix::fs::statfs(folder).is_ok_and(|found| IN_MEMORY.contains(&found.f_type));
    if is_in_memory && user.is_some() {
        let detail = format!("files of mode 0400, {whose}, in memory");
        return Protection::new(ProtectionPart::Secrets, ProtectionState::Enforced, detail);
    }
    let place = if is_in_memory {
        "in memory"
    } else {
        "on disk: the run folder is no tmpfs"
    };
    let detail = format!("files of mode 0400, {whose}, {place}");
    Protection::new(ProtectionPart::Secrets, ProtectionState::Weaker, detail)
}
