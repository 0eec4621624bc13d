//! System calls a model's trial has no business with.

/// Makes network, process-starting and process-inspecting calls of this thread fail with EPERM.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) fn deny_dangerous_calls() -> Result<(), String> {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

    const DENIED: [libc::c_long; 14] = [
        libc::SYS_socket,
        libc::SYS_socketpair,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_listen,
        libc::SYS_accept4,
        libc::SYS_sendto,
        libc::SYS_sendmsg,
        libc::SYS_io_uring_setup,
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
    ];
    let arch = std::env::consts::ARCH.try_into().map_err(|error| format!("{error:?}"))?;
    // No rule means: whatever the arguments.
    let rules = DENIED.into_iter().map(|number| (number, Vec::new())).collect();
    let denied = SeccompAction::Errno(libc::EPERM as u32);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, denied, arch).map_err(|e| e.to_string())?;
    let program: BpfProgram =
        filter.try_into().map_err(|error: seccompiler::BackendError| error.to_string())?;
    apply_filter(&program).map_err(|error| error.to_string())
}

/// seccompiler knows no other architectures.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(super) fn deny_dangerous_calls() -> Result<(), String> {
    Err("not supported on this architecture".to_owned())
}
