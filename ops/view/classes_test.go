package view

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
)

// class is a class of the service: a property and its CIM type to a line, "null" for
// one that has no value, "?" behind the type of one that may have none.
type class string

const imageManagementService class = `
	InstanceID string
	Caption string
	Description string
	ElementName string
	InstallDate datetime?
	OperationalStatus uint16[]
	StatusDescriptions string[]
	Status string?
	HealthState uint16
	CommunicationStatus null
	DetailedStatus null
	OperatingStatus null
	PrimaryStatus null
	EnabledState uint16
	OtherEnabledState null
	RequestedState uint16
	EnabledDefault uint16
	TimeOfLastStateChange datetime
	AvailableRequestedStates null
	TransitioningToState null
	SystemCreationClassName string
	SystemName string
	CreationClassName string
	Name string
	PrimaryOwnerName null
	PrimaryOwnerContact null
	StartMode null
	Started boolean`

const mountedStorageImage class = `
	InstanceID null
	Caption string
	Description string
	ElementName string
	InstallDate datetime?
	Name string
	OperationalStatus null[]
	StatusDescriptions string[]
	Status string
	HealthState uint16
	CommunicationStatus null
	DetailedStatus null
	OperatingStatus null
	PrimaryStatus null
	Type uint16
	Access uint16
	PortNumber uint8
	PathId uint8
	TargetId uint8
	Lun uint8
	PnpDevicePath string`

const storageJob class = `
	Cancellable boolean
	Child string?
	Parent string?
	ErrorSummaryDescription string
	JobCompletionStatusCode uint32
	JobType uint16
	InstanceID string
	Caption string
	Description string
	ElementName string
	Name string
	JobState uint16
	JobStatus string
	PercentComplete uint16
	ErrorCode uint16
	ErrorDescription string
	StartTime datetime?
	TimeSubmitted datetime
	ScheduledStartTime datetime?
	UntilTime datetime?
	ElapsedTime interval
	TimeOfLastStateChange datetime
	TimeBeforeRemoval interval
	DeleteOnCompletion boolean
	HealthState uint16
	OperationalStatus uint16[]
	StatusDescriptions string[]
	Status string?
	LocalOrUtcTime uint16
	RecoveryAction uint16
	OtherRecoveryAction string?
	JobRunTimes uint32?
	RunMonth uint8?
	RunDay sint8?
	RunDayOfWeek sint8?
	RunStartInterval datetime?
	Notify string?
	Owner string
	Priority uint32?
	CommunicationStatus null
	DetailedStatus null
	OperatingStatus null
	PrimaryStatus null`

// beyondStorageJob is what status.json has besides.
const beyondStorageJob class = `
	Job string
	Operation string
	Image string
	Request string
	Process uint32
	BytesDone uint64
	BytesInAll uint64?
	BytesPerSecond uint64
	SecondsLeft uint64?
	Answer object?`

const cimError class = `
	Message string
	MessageID string
	MessageArguments string[]
	OwningEntity string
	ErrorSource string
	ErrorSourceFormat uint16
	OtherErrorSourceFormat string?
	ErrorType uint16
	OtherErrorType string?
	PerceivedSeverity uint16
	ProbableCause uint16
	ProbableCauseDescription string?
	RecommendedActions string[]
	CIMStatusCode uint32
	CIMStatusCodeDescription string`

// The documents of the service's classes have their properties, no other ones, each
// of its type.
func TestClasses(t *testing.T) {
	started := make(chan struct{})
	goOn := make(chan struct{})
	running := job(t, func(_ context.Context, r *ops.Request) (ops.Fields, error) {
		r.Begin(1000)
		close(started)
		<-goOn
		return nil, nil
	})
	<-started
	defer func() { close(goOn); running.Wait(context.Background()) }()
	failed := job(t, func(_ context.Context, r *ops.Request) (ops.Fields, error) {
		r.Begin(0)
		return ops.Fields{{Name: "Child", Value: "/vms/a"}, {Name: "Parent", Value: "b"}},
			errors.Join(ops.Errorf(ops.ErrParentMissing, ops.StatusParentNotFound, "b"), context.Canceled)
	})
	failed.Wait(context.Background())
	refused := job(t, func(context.Context, *ops.Request) (ops.Fields, error) { return nil, ops.ErrUsage })
	refused.Wait(context.Background())
	list := NewJobErrors(failed)
	require.Len(t, list, 2)

	for name, tt := range map[string]struct {
		doc  any
		want class
	}{
		"service.json":                {NewService("here", time.Unix(0, 0)), imageManagementService},
		"mounted.json":                {ops.Attachment{Number: 1, Image: ref("a.vhdx"), Device: "/dev/loop7"}.Describe(), mountedStorageImage},
		"mounted.json, pinned":        {ops.Attachment{Number: 1 << 31, Image: ref("a.vhdx"), ReadOnly: true}.Describe(), mountedStorageImage},
		"status.json, running":        {NewStorageJob(running), storageJob + beyondStorageJob},
		"status.json, failed":         {NewStorageJob(failed), storageJob + beyondStorageJob},
		"status.json, never begun":    {NewStorageJob(refused), storageJob + beyondStorageJob},
		"errors.json, with advice":    {list[0], cimError},
		"errors.json, without advice": {list[1], cimError},
	} {
		t.Run(name, func(t *testing.T) { tt.want.describes(t, render(t, tt.doc)) })
	}
}

// describes compares the document with the class.
func (c class) describes(t *testing.T, doc string) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader([]byte(doc)))
	d.UseNumber()
	var got map[string]any
	require.NoError(t, d.Decode(&got))
	for line := range strings.Lines(strings.TrimSpace(string(c))) {
		name, kind, _ := strings.Cut(strings.TrimSpace(line), " ")
		v, ok := got[name]
		require.True(t, ok, "%s is missing", name)
		delete(got, name)
		kind, nullable := strings.CutSuffix(kind, "?")
		if nullable && v == nil {
			continue
		}
		if element, ok := strings.CutSuffix(kind, "[]"); ok {
			values, ok := v.([]any)
			require.True(t, ok, "%s: %v is no array", name, v)
			for _, v := range values {
				require.NoError(t, is(v, element), name)
			}
			continue
		}
		require.NoError(t, is(v, kind), name)
	}
	require.Empty(t, got, "properties that the class does not have")
}

// is tells why a value is not of a CIM type.
func is(v any, kind string) error {
	ok := false
	switch kind {
	case "null":
		ok = v == nil
	case "boolean":
		_, ok = v.(bool)
	case "string":
		_, ok = v.(string)
	case "object":
		_, ok = v.(map[string]any)
	case "datetime": // yyyymmddHHMMSS.mmmmmm+UUU
		s, isString := v.(string)
		ok = isString && len(s) == 25 && s[14] == '.' && (s[21] == '+' || s[21] == '-')
	case "interval": // ddddddddHHMMSS.mmmmmm:000
		s, isString := v.(string)
		ok = isString && len(s) == 25 && s[14] == '.' && strings.HasSuffix(s, ":000")
	default:
		limits := map[string][2]float64{
			"uint8": {0, math.MaxUint8}, "sint8": {math.MinInt8, math.MaxInt8},
			"uint16": {0, math.MaxUint16}, "uint32": {0, math.MaxUint32}, "uint64": {0, math.MaxUint64},
		}[kind]
		n, isNumber := v.(json.Number)
		f, err := n.Float64()
		ok = isNumber && err == nil && f >= limits[0] && f <= limits[1] && !strings.ContainsAny(n.String(), ".eE")
	}
	if !ok {
		return fmt.Errorf("%v (%T) is no %s", v, v, kind)
	}
	return nil
}

// The four keys of an attachment are its own.
func TestKeysOfAnAttachment(t *testing.T) {
	m := ops.Attachment{Number: 0x01020304, Image: ref("a.iso"), ReadOnly: true, Optical: true}.Describe()
	require.Equal(t, [4]uint8{1, 2, 3, 4}, [4]uint8{m.PortNumber, m.PathId, m.TargetId, m.Lun})
	require.Equal(t, [2]uint16{1, 1}, [2]uint16{m.Type, m.Access})
	m = ops.Attachment{Number: 5, Image: ref("a.vhdx")}.Describe()
	require.Equal(t, [4]uint8{0, 0, 0, 5}, [4]uint8{m.PortNumber, m.PathId, m.TargetId, m.Lun})
	require.Equal(t, [2]uint16{0, 2}, [2]uint16{m.Type, m.Access})
}
