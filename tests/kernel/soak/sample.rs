//! Memory and descriptors of the agent and of its device process over time, as a table and as a picture.

use std::{
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use plotters::prelude::*;

use super::client::Shared;
use crate::lab::{Node, device_processes, network};

const EVERY: Duration = Duration::from_secs(1);
/// How much larger the last quarter's middle may be than that of the second quarter.
const GROWTH: f64 = 1.25;

/// What a process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holding {
    pub descriptors: usize,
    /// Resident memory, KiB.
    pub resident: u64,
}

/// `None` when there is no such process.
pub fn of_process(pid: i32) -> Option<Holding> {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let resident = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(Holding { descriptors, resident })
}

/// What the descriptors of a process are, for a person who reads a failure.
pub fn descriptors(pid: i32) -> Vec<String> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let targets = entries.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let mut targets: Vec<String> = targets.map(|target| target.display().to_string()).collect();
    targets.sort();
    targets
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    seconds: u64,
    agent: Holding,
    /// All device processes together.
    devices: Holding,
}

pub struct Samples {
    samples: Vec<Sample>,
}

/// A thread that looks every second.
pub struct Running {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Sample>>,
}

impl Samples {
    pub fn start(shared: Arc<Shared>, node: Node) -> Running {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let begun = Instant::now();
        let thread = std::thread::spawn(move || {
            let (network, mut samples) = (node.run(network), Vec::new());
            while !stopped.load(Ordering::SeqCst) {
                // An agent that has just died holds nothing, and says nothing about the others.
                if let Some(agent) = of_process(shared.agent.load(Ordering::SeqCst)) {
                    let all = device_processes(network).into_iter().filter_map(of_process);
                    let devices = all.fold(Holding { descriptors: 0, resident: 0 }, |sum, each| Holding {
                        descriptors: sum.descriptors + each.descriptors,
                        resident: sum.resident + each.resident,
                    });
                    samples.push(Sample { seconds: begun.elapsed().as_secs(), agent, devices });
                }
                std::thread::sleep(EVERY);
            }
            samples
        });
        Running { stop, thread }
    }

    fn middle(&self, quarter: usize, value: impl Fn(&Sample) -> u64) -> u64 {
        let size = self.samples.len() / 4;
        let mut values: Vec<u64> = self.samples.iter().skip(quarter * size).take(size.max(1)).map(value).collect();
        values.sort_unstable();
        values.get(values.len() / 2).copied().unwrap_or_default()
    }

    /// Each value by name: how it was in the second quarter and in the last, in the middle.
    fn trends(&self) -> BTreeMap<&'static str, (u64, u64)> {
        let trend = |value: &dyn Fn(&Sample) -> u64| (self.middle(1, value), self.middle(3, value));
        BTreeMap::from([
            ("agent, KiB", trend(&|sample| sample.agent.resident)),
            ("agent, descriptors", trend(&|sample| sample.agent.descriptors as u64)),
            ("devices, KiB", trend(&|sample| sample.devices.resident)),
            ("devices, descriptors", trend(&|sample| sample.devices.descriptors as u64)),
        ])
    }

    /// # Panics
    /// When something grew.
    pub fn assert_flat(&self) {
        for (name, (second, last)) in self.trends() {
            assert!(
                last as f64 <= second as f64 * GROWTH,
                "{name}: {second} in the second quarter, {last} in the last"
            );
        }
    }

    /// Leaves a table and a picture where `OVERLAYD_SOAK_DIR` says.
    pub fn keep(&self, name: &str) {
        let Some(directory) = std::env::var_os("OVERLAYD_SOAK_DIR").map(PathBuf::from) else { return };
        std::fs::create_dir_all(&directory).unwrap();
        let lines = self.samples.iter().map(|sample| {
            let Sample { seconds, agent, devices } = sample;
            format!("{seconds},{},{},{},{}\n", agent.resident, agent.descriptors, devices.resident, devices.descriptors)
        });
        let head = "seconds,agent_kib,agent_descriptors,devices_kib,devices_descriptors\n".to_owned();
        let table: String = std::iter::once(head).chain(lines).collect();
        std::fs::write(directory.join(format!("{name}.csv")), table).unwrap();
        self.draw(&directory.join(format!("{name}.svg"))).unwrap();
    }

    fn draw(&self, path: &std::path::Path) -> Result<(), Box<dyn std::error::Error>> {
        let root = SVGBackend::new(path, (900, 600)).into_drawing_area();
        root.fill(&WHITE)?;
        let (upper, lower) = root.split_vertically(300);
        let mib = |kib: u64| kib as f64 / 1024.0;
        let memory: [(&str, Vec<(u64, f64)>); 2] = [
            ("agent", self.samples.iter().map(|sample| (sample.seconds, mib(sample.agent.resident))).collect()),
            ("devices", self.samples.iter().map(|sample| (sample.seconds, mib(sample.devices.resident))).collect()),
        ];
        let count = |holding: Holding| holding.descriptors as f64;
        let descriptors: [(&str, Vec<(u64, f64)>); 2] = [
            ("agent", self.samples.iter().map(|sample| (sample.seconds, count(sample.agent))).collect()),
            ("devices", self.samples.iter().map(|sample| (sample.seconds, count(sample.devices))).collect()),
        ];
        for (area, what, lines) in [(upper, "resident MiB", memory), (lower, "descriptors", descriptors)] {
            let end = self.samples.last().map_or(1, |sample| sample.seconds.max(1));
            let top = lines.iter().flat_map(|(_, points)| points).fold(1.0_f64, |top, (_, value)| top.max(*value));
            let mut chart = ChartBuilder::on(&area);
            let chart = chart.margin(10).x_label_area_size(30).y_label_area_size(50);
            let mut chart = chart.build_cartesian_2d(0..end, 0.0..top * 1.1)?;
            chart.configure_mesh().x_desc("seconds").y_desc(what).light_line_style(TRANSPARENT).draw()?;
            for ((name, points), colour) in lines.into_iter().zip([BLUE, RED]) {
                let line = LineSeries::new(points, colour);
                let legend = move |(x, y)| PathElement::new([(x, y), (x + 15, y)], colour);
                chart.draw_series(line)?.label(name).legend(legend);
            }
            chart.configure_series_labels().border_style(BLACK).background_style(WHITE).draw()?;
        }
        root.present()?;
        Ok(())
    }
}

impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} samples; second and last quarter:", self.samples.len())?;
        self.trends().into_iter().try_for_each(|(name, (second, last))| write!(f, " {name} {second} and {last};"))
    }
}

impl Running {
    pub fn end(self) -> Samples {
        self.stop.store(true, Ordering::SeqCst);
        Samples { samples: self.thread.join().unwrap() }
    }
}
