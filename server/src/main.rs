//! The `corelog` binary: picks the allocator and hands over to the command line.

/// Per-thread heaps: no allocator lock between the shards.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    corelog_server::cli::main()
}
