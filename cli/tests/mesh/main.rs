//! The program and the mesh as their users have them: processes, HTTP, the command line. One file a behaviour, one binary for
//! all: each links and compiles an HTTP client.

mod bad_input;
mod bench;
mod clock;
mod command_line;
mod docs;
mod experiments;
mod failover;
mod four_binaries;
mod imports;
mod losses;
mod merge;
mod mutual_tls;
mod on_a_device;
mod over_nats;
mod placement;
mod policy;
mod prefix_cache;
mod random_mesh;
mod story;
mod structured_output;
mod support;
mod usage;
