package ops_test

import (
	"context"
	"encoding/json"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/sim"
)

// desk is where jobs are asked for: operations do what their test tells them to.
type desk struct {
	*testing.T
	jobs *ops.Jobs
	lib  *ops.Library
}

func newDesk(t *testing.T) *desk {
	h := sim.New()
	h.Put("/vms/a", nil)
	h.Put("/vms/b", nil)
	require.NoError(t, h.Link("/vms/a", "/vms/hard"))
	d := &desk{T: t, lib: ops.NewLibrary(ops.LibraryOptions{Top: h.Dir("/vms")})}
	d.jobs = ops.NewJobs(context.Background(), func(string, any, []byte) {})
	t.Cleanup(d.jobs.Close)
	return d
}

func (d *desk) start(o ops.Op, image string) (*ops.Job, error) {
	return d.jobs.Start(context.Background(), ops.JobRequest{
		Op: &o, Request: &ops.Request{Library: d.lib, Image: d.lib.Top(image), Args: ops.Args{}}, Text: "as typed"})
}

func (d *desk) mustStart(o ops.Op, image string) *ops.Job {
	d.Helper()
	j, err := d.start(o, image)
	require.NoError(d, err)
	return j
}

// until works till it is released or told to stop.
func until(release <-chan struct{}) func(context.Context, *ops.Request) (ops.Fields, error) {
	return func(ctx context.Context, _ *ops.Request) (ops.Fields, error) {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-release:
			return ops.Fields{{Name: "Path", Value: "/vms/n"}}, nil
		}
	}
}

func TestJobFromStartToEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		steps := make(chan int64)
		j := d.mustStart(ops.Op{Name: "work", Method: "Work", Run: func(_ context.Context, r *ops.Request) (ops.Fields, error) {
			for done := range steps {
				if done == 0 {
					r.Begin(200)
					continue
				}
				r.Progress(done, 200)
			}
			return nil, nil
		}}, "a")
		require.EqualValues(t, 1, j.ID)
		require.Equal(t, "/vms/a", j.Image)
		require.Equal(t, "as typed", j.Text)
		began := time.Now()
		synctest.Wait()
		s := j.Status()
		require.Equal(t, ops.JobStarting, s.State)
		require.Equal(t, began, s.Submitted)
		require.True(t, s.Started.IsZero())
		require.Zero(t, s.Elapsed())

		time.Sleep(time.Second)
		steps <- 0
		synctest.Wait()
		require.Equal(t, ops.JobRunning, j.Status().State)
		require.EqualValues(t, 200, j.Status().All)
		time.Sleep(2 * time.Second)
		steps <- 100
		synctest.Wait()
		s = j.Status()
		require.EqualValues(t, 50, s.Percent())
		require.EqualValues(t, 50, s.Rate, "bytes a second since it began")
		require.Equal(t, 2*time.Second, s.Elapsed())
		time.Sleep(8 * time.Second)
		steps <- 110
		synctest.Wait()
		require.EqualValues(t, 11, j.Status().Rate)
		time.Sleep(10 * time.Second)
		steps <- 199
		synctest.Wait()
		s = j.Status()
		require.EqualValues(t, 8, s.Rate, "of late")
		require.EqualValues(t, 99, s.Percent())
		close(steps)
		a := j.Wait(context.Background())
		require.Equal(t, ops.Answer{Operation: "Work", Job: 1}, a)
		s = j.Status()
		require.Equal(t, ops.JobCompleted, s.State)
		require.EqualValues(t, 100, s.Percent())
		require.EqualValues(t, 200, s.Done)
		require.Equal(t, 20*time.Second, s.Elapsed())
		time.Sleep(time.Minute)
		require.Equal(t, 20*time.Second, j.Status().Elapsed())
	})
}

func TestJobStates(t *testing.T) {
	for _, tt := range []struct {
		name string
		run  func(ctx context.Context, r *ops.Request) (ops.Fields, error)
		want ops.JobState
		err  error
	}{
		{"well", func(context.Context, *ops.Request) (ops.Fields, error) { return nil, nil }, ops.JobCompleted, nil},
		{"with warnings", func(context.Context, *ops.Request) (ops.Fields, error) {
			return ops.Fields{{Name: "Warnings", Value: []string{"mind the gap"}}}, nil
		}, ops.JobWarned, nil},
		{"without warnings", func(context.Context, *ops.Request) (ops.Fields, error) {
			return ops.Fields{{Name: "Warnings", Value: []string{}}}, nil
		}, ops.JobCompleted, nil},
		{"failed", func(context.Context, *ops.Request) (ops.Fields, error) {
			return nil, ops.Corruptf(ops.StatusBATCorrupt, "bad")
		}, ops.JobException, ops.ErrCorrupt},
		{"stopped by itself", func(context.Context, *ops.Request) (ops.Fields, error) {
			return nil, context.Canceled
		}, ops.JobTerminated, context.Canceled},
		{"panicked", func(context.Context, *ops.Request) (ops.Fields, error) { panic("broken on purpose") }, ops.JobException, ops.ErrPoisoned},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDesk(t)
			j := d.mustStart(ops.Op{Name: "work", Run: tt.run}, "a")
			require.ErrorIs(t, j.Wait(context.Background()).Err, tt.err)
			require.Equal(t, tt.want, j.Status().State)
			require.True(t, j.Status().State.Ended())
			require.EqualValues(t, 1, j.Status().Answer.Job)
		})
	}
}

func TestCancelOfAJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		stop := make(chan struct{})
		j := d.mustStart(ops.Op{Name: "work", Run: func(ctx context.Context, r *ops.Request) (ops.Fields, error) {
			r.Begin(0)
			<-ctx.Done()
			<-stop // until the image is whole
			return nil, ctx.Err()
		}}, "a")
		j.Cancel()
		synctest.Wait()
		require.Equal(t, ops.JobShuttingDown, j.Status().State)
		close(stop)
		require.ErrorIs(t, j.Wait(context.Background()).Err, context.Canceled)
		require.Equal(t, ops.JobTerminated, j.Status().State)
		j.Cancel()
		require.Equal(t, ops.JobTerminated, j.Status().State, "it is over")
	})
}

// Who waits and goes takes the job along; its end is waited for all the same.
func TestWaiterThatGoesCancels(t *testing.T) {
	d := newDesk(t)
	j := d.mustStart(ops.Op{Name: "work", Run: until(nil)}, "a")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	require.ErrorIs(t, j.Wait(ctx).Err, context.Canceled)
	require.True(t, j.Status().State.Ended())
}

func TestAccept(t *testing.T) {
	refused := ops.Errorf(ops.ErrUsage, 0, "no such size")
	for _, tt := range []struct {
		name    string
		begin   bool
		err     error
		started bool
		after   time.Duration
	}{
		{"accepted", true, nil, true, 0},
		{"accepted, then failed", true, refused, true, 0},
		{"refused", false, refused, false, 0},
		{"says nothing", false, nil, true, time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDesk(t)
				release := make(chan struct{})
				j := d.mustStart(ops.Op{Name: "work", Run: func(ctx context.Context, r *ops.Request) (ops.Fields, error) {
					if tt.begin {
						r.Begin(7)
					}
					if tt.err != nil {
						return nil, tt.err
					}
					return until(release)(ctx, r)
				}}, "a")
				began := time.Now()
				a := j.Accept(context.Background())
				require.Equal(t, tt.after, time.Since(began))
				require.Equal(t, tt.started, a.Started)
				require.EqualValues(t, 1, a.Job)
				if tt.started {
					require.EqualValues(t, 4096, a.ReturnValue())
				} else {
					require.ErrorIs(t, a.Err, tt.err)
					require.EqualValues(t, 32773, a.ReturnValue())
				}
				close(release)
				require.ErrorIs(t, j.Wait(context.Background()).Err, tt.err)
			})
		})
	}
}

// One operation at a time changes an image, whatever name it is asked by.
func TestOneChangeAtATime(t *testing.T) {
	d := newDesk(t)
	release := make(chan struct{})
	change := ops.Op{Name: "compact", Writes: true, Plans: true, Run: until(release)}
	first := d.mustStart(change, "a")
	for _, image := range []string{"a", "hard"} {
		_, err := d.start(change, image)
		require.ErrorIs(t, err, ops.ErrBusy)
		require.EqualError(t, err, "/vms/"+image+": job 1, compact, runs on it: in use by another operation")
		require.Contains(t, ops.Sentence(err), "Wait for its end, or cancel it")
	}
	d.mustStart(change, "b")
	d.mustStart(ops.Op{Name: "check", Run: until(release)}, "a")
	d.mustStart(ops.Op{Name: "create", Service: true, Writes: true, Run: until(release)}, "a")
	close(release)
	require.NoError(t, first.Wait(context.Background()).Err)
	again := d.mustStart(change, "a")
	require.EqualValues(t, 5, again.ID, "what is refused gets no number")
	require.NoError(t, again.Wait(context.Background()).Err)
}

func TestTooManyJobs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		release := make(chan struct{})
		for range 32 {
			d.mustStart(ops.Op{Name: "work", Run: until(release)}, "a")
		}
		began := time.Now()
		_, err := d.start(ops.Op{Name: "work", Run: until(release)}, "a")
		require.ErrorIs(t, err, ops.ErrBusy)
		require.ErrorContains(t, err, "work: 32 operations run already")
		require.Equal(t, time.Second, time.Since(began))
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_, err = d.jobs.Start(ctx, ops.JobRequest{Op: &ops.Op{}, Request: &ops.Request{Image: d.lib.Top("a")}})
		require.ErrorIs(t, err, context.Canceled)
		time.AfterFunc(time.Second/2, func() { d.jobs.Job(1).Cancel() })
		d.mustStart(ops.Op{Name: "work", Run: until(release)}, "a")
		close(release)
	})
}

func TestJobsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		release := make(chan struct{})
		d.mustStart(ops.Op{Name: "long", Run: until(release)}, "a")
		short := d.mustStart(ops.Op{Name: "short", Run: until(nil)}, "a")
		short.Cancel()
		short.Wait(context.Background())
		time.Sleep(5*time.Minute - 1)
		require.NotNil(t, d.jobs.Job(2))
		time.Sleep(1)
		require.Nil(t, d.jobs.Job(2))
		require.NotNil(t, d.jobs.Job(1), "what runs is never forgotten")
		close(release)
		d.jobs.Job(1).Wait(context.Background())
		for range 1005 {
			d.mustStart(ops.Op{Name: "short", Run: until(release)}, "a").Wait(context.Background())
		}
		list := d.jobs.List()
		require.Len(t, list, 1000)
		require.EqualValues(t, 1007, list[999].ID)
	})
}

// Answers are remembered as far as memory goes.
func TestLongAnswersAreNotKept(t *testing.T) {
	d := newDesk(t)
	answer := func(size int64) *ops.Job {
		o := ops.Op{Name: "work", Run: until(closed())}
		j, err := d.jobs.Start(context.Background(), ops.JobRequest{
			Op: &o, Request: &ops.Request{Image: d.lib.Top("a")},
			Ended: func(j *ops.Job, a ops.Answer) int64 {
				require.NotEmpty(t, a.Fields)
				require.Equal(t, a, j.Status().Answer)
				select {
				case <-j.Done():
					t.Error("others know already")
				default:
				}
				return size
			}})
		require.NoError(t, err)
		require.NoError(t, j.Wait(context.Background()).Err)
		return j
	}
	require.Empty(t, answer(1<<20+1).Status().Answer.Fields)
	require.True(t, d.jobs.Job(1).Status().Long)
	for range 17 {
		require.NotEmpty(t, answer(1<<20).Status().Answer.Fields)
	}
	require.Len(t, d.jobs.List(), 16)
	require.Nil(t, d.jobs.Job(2))
}

func closed() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

func TestCloseStopsJobs(t *testing.T) {
	d := newDesk(t)
	var stopped sync.Map
	for _, image := range []string{"a", "b"} {
		d.mustStart(ops.Op{Name: "work", Run: func(ctx context.Context, _ *ops.Request) (ops.Fields, error) {
			<-ctx.Done()
			stopped.Store(image, true)
			return nil, ctx.Err()
		}}, image)
	}
	d.jobs.Close()
	for _, image := range []string{"a", "b"} {
		_, ok := stopped.Load(image)
		require.True(t, ok)
	}
	_, err := d.start(ops.Op{Name: "work", Run: until(nil)}, "a")
	require.ErrorIs(t, err, ops.ErrBusy)
	require.ErrorContains(t, err, "the service stops")
}

func TestAnswersOfJobs(t *testing.T) {
	for _, tt := range []struct {
		a    ops.Answer
		want string
	}{
		{ops.Answer{Operation: "Work", Job: 12, Fields: ops.Fields{{Name: "Path", Value: "/n"}}}, `{"Operation":"Work","ReturnValue":0,"Job":"12","Path":"/n"}`},
		{ops.Answer{Operation: "Work", Job: 3, Started: true}, `{"Operation":"Work","ReturnValue":4096,"Job":"3"}`},
		{ops.Answer{Operation: "Work"}, `{"Operation":"Work","ReturnValue":0}`},
	} {
		b, err := json.Marshal(tt.a)
		require.NoError(t, err)
		require.Equal(t, tt.want, string(b))
	}
}
