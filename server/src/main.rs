//! The program `underlay-server`.

fn main() -> std::process::ExitCode {
    underlay_server::cli::main()
}
