//! The data dir: one process at a time, and an identity that survives it.

use tailring::log::{DirLock, DirectoryError};
use tailring::model::Moment;

#[test]
fn a_data_dir_in_use_is_refused_and_says_by_whom() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("made/if/missing");
    let held = DirLock::acquire(&dir).unwrap();
    for _ in 0..2 {
        let error = DirLock::acquire(&dir).unwrap_err();
        assert!(matches!(error, DirectoryError::InUse { .. }));
        let pid = std::process::id().to_string();
        assert!(
            error.to_string().contains(&format!("process {pid}")),
            "{error}"
        );
    }
    drop(held);
    assert!(!dir.join("LOCK").exists());
    DirLock::acquire(&dir).unwrap();
}

#[test]
fn a_lock_file_left_by_a_killed_process_keeps_nobody_out() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("LOCK"), "4194305\n").unwrap();
    let held = DirLock::acquire(dir.path()).unwrap();
    let note = std::fs::read_to_string(dir.path().join("LOCK")).unwrap();
    assert_eq!(note, format!("{}\n", std::process::id()));
    drop(held);
}

#[test]
fn an_unwritable_data_dir_is_refused_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a-file");
    std::fs::write(&file, "").unwrap();
    let error = DirLock::acquire(&file.join("below")).unwrap_err();
    assert!(matches!(error, DirectoryError::Unwritable { .. }));
    assert!(error.to_string().contains("a-file/below"), "{error}");
}

#[test]
fn the_store_keeps_its_name_and_every_life_has_a_higher_incarnation() {
    let dir = tempfile::tempdir().unwrap();
    let life = |millis| {
        let lock = DirLock::acquire(dir.path()).unwrap();
        lock.next_life(Moment::from_unix_millis(millis)).unwrap()
    };
    let first = life(1000);
    assert_eq!(first.incarnation.0, 1000);
    let second = life(5000);
    assert_eq!(second.incarnation.0, 5000);
    let clock_went_back = life(400);
    assert_eq!(clock_went_back.incarnation.0, 5001);
    assert!(
        [second, clock_went_back]
            .iter()
            .all(|it| it.store == first.store)
    );

    let other = tempfile::tempdir().unwrap();
    let lock = DirLock::acquire(other.path()).unwrap();
    let stranger = lock.next_life(Moment::from_unix_millis(1000)).unwrap();
    assert_ne!(stranger.store, first.store);
}

#[test]
fn a_damaged_identity_is_an_error_and_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("IDENTITY");
    let lock = DirLock::acquire(dir.path()).unwrap();
    lock.next_life(Moment::from_unix_millis(1)).unwrap();
    let good = std::fs::read(&file).unwrap();
    for cut in 0..good.len() {
        std::fs::write(&file, &good[..cut]).unwrap();
        let error = lock.next_life(Moment::from_unix_millis(1)).unwrap_err();
        assert!(
            matches!(error, DirectoryError::IdentityDamaged { .. }),
            "cut at {cut}"
        );
        assert_eq!(std::fs::read(&file).unwrap(), &good[..cut]);
    }
    let newer = String::from_utf8(good)
        .unwrap()
        .replace("store 1", "store 2");
    std::fs::write(&file, newer).unwrap();
    assert!(lock.next_life(Moment::from_unix_millis(1)).is_err());
}
