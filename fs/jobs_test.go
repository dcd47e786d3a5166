package fs

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/need"
)

// ask writes a request and reads its answer on the same handle.
func (m *mounted) ask(t *testing.T, image, op, request string) (map[string]any, error) {
	t.Helper()
	f, err := os.OpenFile(m.path(image, op), os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	_, failed := f.WriteString(request)
	b, err := io.ReadAll(f)
	require.NoError(t, err)
	return answerOf(t, b), failed
}

// document is a JSON object of the mount.
func (m *mounted) document(t *testing.T, name ...string) map[string]any {
	t.Helper()
	b, err := os.ReadFile(m.path(name...))
	require.NoError(t, err)
	return answerOf(t, b)
}

func (m *mounted) job(t *testing.T, id string) map[string]any {
	t.Helper()
	return m.document(t, ".vhdfs", "jobs", id, "status.json")
}

// Numbers of Msvm_StorageJob.JobState as JSON has them.
const (
	running    = float64(4)
	completed  = float64(7)
	terminated = float64(8)
)

func TestJobWithoutWaiting(t *testing.T) {
	m := serveFlat(t, terms{}, "a", mib)
	a, err := m.ask(t, "a.flat", "slow", "wait=false")
	require.NoError(t, err)
	require.Equal(t, map[string]any{"Operation": "slow", "ReturnValue": 4096.0, "Job": "1"}, a)
	require.Equal(t, a, m.document(t, "a.flat", "slow"))

	s := m.job(t, "1")
	for name, want := range map[string]any{
		"Job": "1", "Name": "slow", "JobType": 3.0, "JobState": running, "JobStatus": "Running", "PercentComplete": 25.0,
		"BytesDone": 50.0, "BytesInAll": 200.0, "Cancellable": true, "Image": m.image("a.flat"), "Request": "wait=false",
		"TimeBeforeRemoval": "00000000000500.000000:000", "ErrorCode": 0.0, "Answer": nil,
	} {
		require.Equal(t, want, s[name], name)
	}
	errs, err := os.ReadFile(m.path(".vhdfs", "jobs", "1", "errors.json"))
	require.NoError(t, err)
	require.Equal(t, "null\n", string(errs))

	// What else would change the image is refused, by name of the job.
	_, err = m.ask(t, "a.flat", "slow", "1")
	require.ErrorIs(t, err, syscall.EBUSY)
	busy := m.document(t, "a.flat", "slow")
	require.Contains(t, busy["Error"], "job 1, slow, runs on it")
	require.Equal(t, 32774.0, busy["ReturnValue"])
	require.NotContains(t, busy, "Job")
	a, err = m.ask(t, "a.flat", "validate", "1")
	require.NoError(t, err)
	require.Equal(t, "2", a["Job"])

	a, err = m.ask(t, ".vhdfs/jobs/1", "cancel", "x")
	require.NoError(t, err)
	require.Equal(t, map[string]any{"Operation": "RequestStateChange", "ReturnValue": 0.0, "Job": "1"}, a)
	s = m.document(t, ".vhdfs", "jobs", "1", "wait")
	require.Equal(t, s, m.job(t, "1"))
	require.Equal(t, terminated, s["JobState"])
	require.Equal(t, false, s["Cancellable"])
	require.Equal(t, 32775.0, s["ErrorCode"])
	end := s["Answer"].(map[string]any)
	require.Equal(t, "ECANCELED", end["Errno"])
	require.Equal(t, end, m.document(t, "a.flat", "slow"), "the end is the last answer")
	require.Equal(t, end, m.document(t, "a.flat", "state.json")["LastOperation"])
	var list []map[string]any
	errs, err = os.ReadFile(m.path(".vhdfs", "jobs", "1", "errors.json"))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(errs, &list))
	require.Len(t, list, 1)
	require.Equal(t, "ECANCELED", list[0]["MessageID"])

	_, err = m.ask(t, ".vhdfs/jobs/1", "cancel", "again")
	require.NoError(t, err, "it is over, as was asked")
	entries, err := os.ReadDir(m.path(".vhdfs", "jobs"))
	require.NoError(t, err)
	require.Len(t, entries, 2)
	require.NoFileExists(t, m.path(".vhdfs", "jobs", "3"))
}

func TestStateShowsAJobThatGoesOn(t *testing.T) {
	m := serveFlat(t, terms{}, "a", mib)
	_, err := m.ask(t, "a.flat", "slow", "wait=false")
	require.NoError(t, err)
	require.Equal(t, map[string]any{"Operation": "slow", "ReturnValue": 4096.0, "Job": "1"}, m.document(t, "a.flat", "state.json")["LastOperation"])
}

// A dry request changes nothing, so that it runs beside what does, and in a mount
// that is read-only.
func TestDryRequests(t *testing.T) {
	m := serveFlat(t, terms{ReadOnly: true}, "a", mib)
	a, err := m.ask(t, "a.flat", "slow", "dryrun=true")
	require.NoError(t, err)
	require.Equal(t, 7.0, a["BytesToMove"])
	require.Equal(t, "1", a["Job"])
	_, err = m.ask(t, "a.flat", "slow", "1")
	require.ErrorIs(t, err, syscall.EROFS)
}

// A job that fails after it was accepted says so in its own files; one that is
// refused before does so at once.
func TestJobThatFails(t *testing.T) {
	m := serveFlat(t, terms{}, "a", mib)
	a, err := m.ask(t, ".", ".vhdfs/create", "path=n.vhdx wait=false")
	require.ErrorIs(t, err, syscall.EINVAL)
	require.Equal(t, 32773.0, a["ReturnValue"])
	require.NoError(t, os.Remove(m.image("a.flat")))
	a, err = m.ask(t, ".", ".vhdfs/create", "path=n.vhdx size=1G wait=false")
	require.NoError(t, err)
	s := m.document(t, ".vhdfs", "jobs", a["Job"].(string), "wait")
	require.Equal(t, completed, s["JobState"])
	require.Equal(t, 100.0, s["PercentComplete"])
	require.Equal(t, m.image("n.vhdx"), s["Answer"].(map[string]any)["Path"])
}

// reader is a cat of a file that blocks.
func reader(t *testing.T, name string) (*exec.Cmd, *strings.Builder) {
	t.Helper()
	cmd, out := exec.Command(need.Tool(t, "cat"), name), &strings.Builder{}
	cmd.Stdout = out
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd, out
}

// inKernel waits until a process sleeps in a request of the mount.
func inKernel(t *testing.T, pid int) {
	t.Helper()
	require.Eventually(t, func() bool {
		b, err := os.ReadFile(filepath.Join("/proc", itoa(uint32(pid)), "wchan"))
		return err == nil && strings.Contains(string(b), "request_wait_answer")
	}, 10*time.Second, 5*time.Millisecond)
}

// Many wait for one job; nobody else does.
func TestWaitBlocksOnlyWhoReadsIt(t *testing.T) {
	m := serveFlat(t, terms{}, "a", mib)
	_, err := m.ask(t, "a.flat", "slow", "wait=false")
	require.NoError(t, err)
	name := m.path(".vhdfs", "jobs", "1", "wait")
	st, err := os.Stat(name)
	require.NoError(t, err, "a stat does not wait")
	require.Zero(t, st.Size())
	f, err := os.Open(name)
	require.NoError(t, err, "nor does an open")
	defer f.Close()
	var cmds []*exec.Cmd
	var outs []*strings.Builder
	for range 100 {
		cmd, out := reader(t, name)
		cmds, outs = append(cmds, cmd), append(outs, out)
	}
	for _, cmd := range cmds {
		inKernel(t, cmd.Process.Pid)
	}
	raw, err := os.OpenFile(m.path("a.flat", "raw"), os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = raw.WriteString("goes on")
	require.NoError(t, errors.Join(err, raw.Sync(), raw.Close()))
	require.NoError(t, cmds[0].Process.Signal(syscall.SIGTERM))
	var exit *exec.ExitError
	require.ErrorAs(t, cmds[0].Wait(), &exit, "a reader can be ended")
	require.Equal(t, running, m.job(t, "1")["JobState"], "and the job goes on")
	_, err = m.ask(t, ".vhdfs/jobs/1", "cancel", "1")
	require.NoError(t, err)
	for i, cmd := range cmds[1:] {
		require.NoError(t, cmd.Wait())
		require.Equal(t, terminated, answerOf(t, []byte(outs[i+1].String()))["JobState"])
	}
	b, err := io.ReadAll(f)
	require.NoError(t, err)
	require.Equal(t, terminated, answerOf(t, b)["JobState"])
}

// The end of the service cancels what runs, and ends who waits.
func TestShutdownCancelsJobs(t *testing.T) {
	m := serveFlat(t, terms{}, "a", mib)
	_, err := m.ask(t, "a.flat", "slow", "wait=false")
	require.NoError(t, err)
	cmd, out := reader(t, m.path(".vhdfs", "jobs", "1", "wait"))
	inKernel(t, cmd.Process.Pid)
	m.end(t)
	require.NoError(t, cmd.Wait())
	require.Equal(t, terminated, answerOf(t, []byte(out.String()))["JobState"])
}

func TestUnmountCancelsJobs(t *testing.T) {
	need.Root(t)
	m := serveFlat(t, terms{}, "a", mib)
	_, err := m.ask(t, "a.flat", "slow", "wait=false")
	require.NoError(t, err)
	require.Eventually(t, func() bool { return syscall.Unmount(m.mnt, 0) == nil }, 5*time.Second, 10*time.Millisecond)
	select {
	case err := <-m.exited:
		require.NoError(t, err)
		m.exited <- nil
	case <-time.After(20 * time.Second):
		t.Fatal("the job goes on")
	}
}

// A fatal signal to who waits for the end is the end of the job; who does not
// wait may go.
func TestWriterThatGoes(t *testing.T) {
	m := serveFlat(t, terms{}, "a", mib)
	w := m.startWriter(t, m.path("a.flat", "slow"), "wait=false")
	require.NoError(t, <-w.exited)
	first := m.document(t, "a.flat", "slow")["Job"].(string)
	require.Equal(t, running, m.job(t, first)["JobState"])
	_, err := m.ask(t, ".vhdfs/jobs/"+first, "cancel", "1")
	require.NoError(t, err)
	w = m.startWriter(t, m.path("a.flat", "slow"), "1")
	require.NoError(t, w.cmd.Process.Signal(syscall.SIGINT))
	require.Error(t, <-w.exited)
	require.Eventually(t, func() bool { return m.document(t, "a.flat", "slow")["Job"] != first }, 5*time.Second, 5*time.Millisecond)
	second := m.document(t, "a.flat", "slow")
	require.Equal(t, "ECANCELED", second["Errno"])
	require.Equal(t, terminated, m.job(t, second["Job"].(string))["JobState"])
}

func TestLongAnswer(t *testing.T) {
	m := serveFlat(t, terms{}, "a", mib)
	f, err := os.OpenFile(m.path("a.flat", "long"), os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	_, err = f.WriteString("1")
	require.NoError(t, err)
	here, err := io.ReadAll(f)
	require.NoError(t, err)
	require.True(t, json.Valid(here))
	const before, after = `{"Operation":"long","ReturnValue":0,"Job":"1","Ranges":[1,`, ",1]}\n"
	require.Len(t, here, len(before)-len("[1,")+3<<20+1+len("}\n"))
	require.Equal(t, before, string(here[:len(before)]))
	require.Equal(t, after, string(here[len(here)-len(after):]))
	fresh, err := os.ReadFile(m.path("a.flat", "long"))
	require.NoError(t, err)
	require.True(t, bytes.Equal(here, fresh))
	require.Equal(t, completed, m.job(t, "1")["JobState"])
	require.Nil(t, m.job(t, "1")["Answer"])
	require.NotContains(t, m.document(t, "a.flat", "state.json")["LastOperation"], "Ranges")
}

func TestCancelIsForTheOwner(t *testing.T) {
	need.Root(t)
	m := serveFlat(t, terms{AllowOther: true}, "a", mib)
	require.NoError(t, os.Chmod(filepath.Dir(m.mnt), 0o755))
	_, err := m.ask(t, "a.flat", "slow", "wait=false")
	require.NoError(t, err)
	asNobody(t, func() {
		_, err := os.OpenFile(m.path(".vhdfs", "jobs", "1", "cancel"), os.O_WRONLY, 0)
		require.ErrorIs(t, err, syscall.EACCES)
	})
	require.Equal(t, running, m.job(t, "1")["JobState"])
	require.Error(t, os.Remove(m.path(".vhdfs", "jobs", "1", "cancel")))
	require.Error(t, os.Remove(m.path(".vhdfs", "jobs", "1")))
}

func TestRememberedAnswersAreBounded(t *testing.T) {
	m := newMount(Options{Library: ops.NewLibrary(ops.LibraryOptions{})})
	big := strings.Repeat("x", 1<<20-1024)
	for i := range 100 {
		a := ops.Answer{Operation: "work", Fields: ops.Fields{{Name: "Text", Value: big}}, Err: errors.ErrUnsupported}
		m.remember(controlKey{itoa(uint32(i)), "work"}, a)
	}
	kept := int64(0)
	for _, s := range m.mu.controls {
		if s.last != nil {
			kept += s.last.cost()
		}
	}
	require.LessOrEqual(t, kept, int64(maxRemembered))
	require.NotNil(t, m.lastAnswer(controlKey{"99", "work"}))
	require.Nil(t, m.lastAnswer(controlKey{"0", "work"}))
	require.Empty(t, m.mu.lastOps["99"].Fields)
}

// What says that a job goes on does not replace its end.
func TestEndBeforeTheAnswerThatItGoesOn(t *testing.T) {
	m := newMount(Options{Library: ops.NewLibrary(ops.LibraryOptions{})})
	key := controlKey{"a", "work"}
	end := m.remember(key, ops.Answer{Operation: "work", Job: 3})
	going := m.remember(key, ops.Answer{Operation: "work", Job: 3, Started: true})
	require.NotSame(t, end, going)
	require.Same(t, end, m.lastAnswer(key))
	require.False(t, m.mu.lastOps["a"].Started)
}
