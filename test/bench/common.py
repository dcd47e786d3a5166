"""What the comparisons with QEMU share."""
import contextlib, json, os, subprocess, sys, tempfile, time


def export(path):
    """QEMU's FUSE export of a VHDX over its own file."""
    return subprocess.Popen(["qemu-storage-daemon", "--blockdev", f"driver=file,filename={path},node-name=f",
                             "--blockdev", "driver=vhdx,file=f,node-name=v",
                             "--export", f"type=fuse,id=e,node-name=v,mountpoint={path},writable=on"],
                            stderr=subprocess.DEVNULL)


def fio(path, size, args):
    """MB/s of one job on the first size MiB of a file or device, and its writes."""
    out = subprocess.run(["fio", "--name=j", f"--filename={path}", f"--size={size}M", "--allow_file_create=0",
                          "--output-format=json", "--ioengine=psync"] + args, capture_output=True, text=True).stdout
    job = json.loads(out[out.index("{"):])["jobs"][0]
    if job["error"]:
        sys.exit(f"fio: error {job['error']} with {path}")
    return (job["read"]["bw_bytes"] + job["write"]["bw_bytes"]) / 1e6, job["write"]["total_ios"]


@contextlib.contextmanager
def mounted(vhdfs, images, mnt):
    """The image folder, mounted."""
    daemon = subprocess.Popen([vhdfs, "mount", "--log-level", "error", images, mnt])
    try:
        while not os.path.isdir(f"{mnt}/.vhdfs"):
            if daemon.poll() is not None:
                sys.exit("vhdfs mount failed")
            time.sleep(0.05)
        yield
    finally:
        subprocess.run([vhdfs, "umount", mnt])
        daemon.wait()


@contextlib.contextmanager
def tmpfs():
    """A folder in memory: only the software is measured."""
    top = tempfile.mkdtemp(prefix="vhdfs-bench-")
    subprocess.check_call(["mount", "-t", "tmpfs", "-o", "size=8G", "bench", top])
    try:
        yield top
    finally:
        subprocess.run(["umount", "-l", top])
        os.rmdir(top)
