import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.net.ServerSocket;
import java.net.Socket;
import java.nio.channels.ServerSocketChannel;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;

/** `hello PID` on the listening socket at descriptor 0; /slow takes 0.6 seconds; SIGTERM drains. */
public class Main {
    public static void main(String[] args) throws Exception {
        if (!(System.inheritedChannel() instanceof ServerSocketChannel channel)) {
            System.err.println("descriptor 0 is no listening socket");
            System.exit(1);
            return;
        }
        ServerSocket listener = channel.socket();
        ExecutorService pool = Executors.newFixedThreadPool(4);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            try {
                listener.close();
                pool.shutdown();
                pool.awaitTermination(10, TimeUnit.SECONDS);
            } catch (Exception e) {
                // the process ends anyway
            }
        }));
        while (true) {
            Socket client = listener.accept();
            pool.execute(() -> answer(client));
        }
    }

    static void answer(Socket client) {
        try (client) {
            BufferedReader request = new BufferedReader(new InputStreamReader(client.getInputStream()));
            String first = request.readLine();
            for (String line = first; line != null && !line.isEmpty(); ) line = request.readLine();
            if (first != null && first.contains(" /slow ")) Thread.sleep(600);
            String body = "hello " + ProcessHandle.current().pid() + "\n";
            client.getOutputStream().write(("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: "
                    + body.length() + "\r\n\r\n" + body).getBytes());
        } catch (Exception e) {
            // the client's loss
        }
    }
}
