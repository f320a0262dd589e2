//! One seed of the quickest faults. All faults and seeds: `make faults`.

use std::path::Path;

async fn passes(fault: &str) {
    let program = Path::new(env!("CARGO_BIN_EXE_landfast-faults"));
    let outcome = landfast_faults::run_briefly(fault, 1, program).await;
    assert!(outcome.is_passed, "{fault}, seed 1: {:#?}", outcome.wrong);
    // On a busy machine fewer are written; none at all would show nothing.
    assert!(outcome.acknowledged > 50, "{fault}: {outcome:?}");
}

macro_rules! quick {
    ($($name:ident $fault:literal)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            passes($fault).await;
        }
    )*};
}

quick! {
    the_archiver_dies_in_a_backup "F1"
    its_children_die "F2"
    a_restore_dies "F3"
    the_host_is_lost "F5"
    a_page_of_the_primary_is_damaged "F11"
    keys_are_wrong_rotated_and_lost "F12"
    ten_days_without_a_backup "F14"
    a_copy_writes_nothing_elsewhere "F20"
}
