//! The program `underlay`.

fn main() -> std::process::ExitCode {
    underlay_client::cli::main()
}
